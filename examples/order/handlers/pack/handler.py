"""Puts the lines of an order into parcels of at most 20 kg."""


def handle(input, ctx):
    most = ctx.config.get("gramsAtMost", 20_000)
    pieces = [
        (line["gramsEach"], line["sku"]) for line in input["lines"] for _ in range(line["count"])
    ]
    parcels = []
    for grams, sku in sorted(pieces, reverse=True):
        for parcel in parcels:
            if parcel["grams"] + grams <= most:
                break
        else:
            parcel = {"grams": 0, "skus": []}
            parcels.append(parcel)
        parcel["grams"] += grams
        parcel["skus"].append(sku)
    ctx.log.info("packed", parcels=len(parcels))
    return parcels
