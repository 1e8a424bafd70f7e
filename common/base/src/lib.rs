//! What the three sides share besides bytes: the block device interface, time, the gate, crash-safe files.
//!
//! | module | what |
//! |---|---|
//! | [`block`] | [`BlockDevice`](block::BlockDevice) and its [`Queue`](block::Queue): the interface between front ends (NBD, ublk) and what is behind them (a protected disk, a plain disk, a point of history) |
//! | [`simple`] | the same for devices that answer at once, and a blocking caller |
//! | [`buf`] | page-aligned buffers |
//! | [`calendar`] | hours, days, weeks and months |
//! | [`clock`] | time as an injected thing |
//! | [`barrier`] | barriers across machines, as state machines |
//! | [`gate`] | the gate that a barrier closes |
//! | [`crashsafe`] | files that are whole or not there |
//! | [`net`] | stream sockets between the roles, unix or TCP |
//! | [`qemu`] | QEMU's machine protocol and guest agent |
//! | [`world`] | time, threads, chance and files, so that a simulation can own them |

pub mod barrier;
pub mod block;
pub mod buf;
pub mod calendar;
pub mod clock;
pub mod crashsafe;
pub mod gate;
pub mod net;
pub mod qemu;
pub mod simple;
pub mod world;
