"""Which edited fact does a query ask for? Encoder, index, gate, router."""
