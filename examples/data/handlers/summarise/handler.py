"""Turns the totals into a text for people; a class with an async method."""


class Summarise:
    async def handle(self, input, ctx):
        best = list(input["centsByProduct"].items())[: ctx.config.get("products", 3)]
        lines = [f"{input['rows']} rows, {input['badRows']} of them left out"]
        lines += [
            f"{region:>6} {self.euros(c):>16}" for region, c in input["centsByRegion"].items()
        ]
        lines += [f"{'all':>6} {self.euros(input['totalCents']):>16}"]
        lines += [f"best: {name} with {self.euros(cents)}" for name, cents in best]
        return "\n".join(lines)

    @staticmethod
    def euros(cents):
        return f"{cents / 100:,.2f} EUR"
