//! Whole volumes against an appliance that only remembers.

mod broken;
mod changes;
mod failback;
mod fence;
mod fetched;
mod intent;
mod order;
mod overflow;
mod power;
mod quiet;
mod refusals;
mod restart;
mod resync;
mod trouble;
mod verify;
