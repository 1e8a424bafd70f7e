//! Where machines run after a failover: QEMU on this host.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | the description of a machine: a TOML file, checked |
//! | [`network`] | what a card of the machine is connected to here, and with which addresses |
//! | [`qemu`] | the description as the command line of QEMU |
//! | [`domain`] | the description as a domain of libvirt |
//! | [`accelerator`] | whether KVM works on this host |
//! | [`process`] | processes that are known by more than their number, and that die with who started them |
//! | [`qmp`] | what a running QEMU is asked |
//!
//! The modules know no volume and no history: where a disk comes from is a [`qemu::DiskPlace`].

pub mod accelerator;
pub mod domain;
pub mod machine;
pub mod network;
pub mod process;
pub mod qemu;
pub mod qmp;
