//! Every version of every block: what a volume looked like at any seq.
