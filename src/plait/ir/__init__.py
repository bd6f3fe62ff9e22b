"""The IR of one fused region: see `program` for the values, `ops` for what they can be."""
