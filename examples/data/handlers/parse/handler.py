"""Reads, checks and adds up the CSV file that its package carries.

A context value has at most 1 MiB, so three megabytes of rows do not travel through the context:
they are in the package, which the sandbox shows read-only, and only the totals come out.
"""

import csv
import re
from collections import Counter
from pathlib import Path

MONEY = re.compile(r"\d+\.\d\d")
DAY = re.compile(r"\d{4}-(\d\d)-\d\d")
SHOWN_AT_MOST = 20


def handle(input, ctx):
    regions = set(input["regions"])
    by_region, by_month, by_product, bad, rows = Counter(), Counter(), Counter(), [], 0
    with (Path(__file__).parent / "sales.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows += 1
            problem = wrong_with(row, regions)
            if problem:
                bad.append({"row": row["id"], "problem": problem})
                continue
            cents = int(row["amount"].replace(".", "")) * int(row["pieces"])
            by_region[row["region"]] += cents
            by_month[DAY.fullmatch(row["day"])[1]] += cents
            by_product[row["product"]] += cents
    ctx.log.info("read", rows=rows, bad=len(bad))
    return {
        "rows": rows,
        "badRows": len(bad),
        "badPerMille": 1000 * len(bad) / max(rows, 1),
        "bad": bad[:SHOWN_AT_MOST],
        "totalCents": sum(by_region.values()),
        "centsByRegion": dict(sorted(by_region.items())),
        "centsByMonth": dict(sorted(by_month.items())),
        "centsByProduct": dict(by_product.most_common()),
    }


def wrong_with(row, regions):
    if row["region"] not in regions:
        return f"unknown region {row['region']!r}"
    if not DAY.fullmatch(row["day"]):
        return f"{row['day']!r} is not a day"
    if not row["pieces"].isdecimal():
        return f"{row['pieces']!r} is not a number of pieces"
    if not MONEY.fullmatch(row["amount"]):
        return f"{row['amount']!r} is not an amount"
    return None
