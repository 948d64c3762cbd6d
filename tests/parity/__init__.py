"""Numbers recorded from EasyEdit, and the programs which recorded them."""
