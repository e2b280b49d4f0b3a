"""Label maps, names, colours and splits of the datasets, as YAML files (read by `..label_map`)."""
