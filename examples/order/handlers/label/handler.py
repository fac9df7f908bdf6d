"""Gives each parcel a tracking number; written as a class.

`ctx.task_id` is the same however often this attempt is run (a crash at the wrong moment runs it
again), so a number made from it is the same too. A real carrier would get it as the idempotency
key of the request, and so would never print the same label twice.
"""

import hashlib


class Label:
    def handle(self, input, ctx):
        ctx.update("carrier", "Monkey Express")
        return [
            {**parcel, "tracking": self.tracking(ctx.task_id, number)}
            for number, parcel in enumerate(input)
        ]

    @staticmethod
    def tracking(task_id, number):
        digest = hashlib.sha256(f"{task_id}/{number}".encode()).hexdigest()
        return f"MX{digest[:10].upper()}"
