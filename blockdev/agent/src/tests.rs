//! Whole volumes against an appliance that only remembers.

mod broken;
mod order;
mod overflow;
mod restart;
mod trouble;
