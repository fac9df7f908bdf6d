"""Write sales.csv into the package of `sales/parse`: some 3 MB, the same on every machine.

One row in a thousand is broken, as real files are.
"""

import random
from pathlib import Path

ROWS = 75_000
REGIONS = ("north", "east", "south", "west")
PRODUCTS = tuple(f"product-{number:02}" for number in range(40))
BROKEN = ("", "n/a", "-5", "12.345", "1e3")
PLACE = Path(__file__).parent / "handlers" / "parse" / "sales.csv"


def rows():
    chance = random.Random(20_261)
    yield "id,day,region,product,pieces,amount"
    for number in range(ROWS):
        day = f"2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
        amount = f"{chance.randint(1, 500)}.{chance.randint(0, 99):02}"
        if number % 1000 == 500:
            amount = chance.choice(BROKEN)
        region, product = chance.choice(REGIONS), chance.choice(PRODUCTS)
        yield f"{number},{day},{region},{product},{chance.randint(1, 9)},{amount}"


if __name__ == "__main__":
    PLACE.write_text("".join(f"{row}\n" for row in rows()))
    print(f"{PLACE}: {PLACE.stat().st_size} bytes")
