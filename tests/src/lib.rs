//! The laboratory in which the real `afterimage` binary meets real clients. Nothing here knows how Afterimage works
//! inside: it starts programs, talks to them as a user would, and kills them.
//!
//! | module | what |
//! |---|---|
//! | [`tool`] | runs a program to its end; a failure is a panic that shows command and output |
//! | [`process`] | a program that runs on, and dies with its owner |
//! | [`binary`] | finds, and if need be builds, our own programs |
//! | [`daemon`] | `afterimage up`: start, status, kill -9, restart, restore, export |
//! | [`pair`] | agent and appliance as two processes |
//! | [`herd`] | several agents in a group, an appliance and mgmt |
//! | [`mgmt`] | mgmt with a pair that has joined it, and what strangers try |
//! | [`peer`] | other NBD servers, to check the harness with and to measure against |
//! | [`pretender`] | a guest agent that freezes nothing |
//! | [`proxy`] | a TCP proxy that cuts, stalls, spoils and slows |
//! | [`guest`] | QEMU guests, driven by their serial ports |
//! | [`inside`] | a guest that protects disks of its own |
//! | [`seats`] | how many guests run at a time |
//! | [`ext4`] | is this image a sound ext4 after journal replay? |
//! | [`netns`] | several hosts on this one, with links that can be cut |
//! | [`lab`] | the usual setting: one protected disk in a folder of its own |
//! | [`data`] | test data: seeded chance, image files, comparisons |
//!
//! Everything panics on failure, as a test wants it, and removes what it made when it is dropped.

pub mod binary;
pub mod daemon;
pub mod data;
pub mod ext4;
pub mod guest;
pub mod herd;
pub mod inside;
pub mod lab;
pub mod mgmt;
pub mod netns;
pub mod pair;
pub mod peer;
pub mod pretender;
pub mod process;
pub mod proxy;
pub mod seats;
pub mod tool;
