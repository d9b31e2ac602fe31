"""The tables of the documentation, a module for each subject; `tables.markers` lists them."""
