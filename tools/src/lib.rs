//! What the `afterimage` command and the load generator are made of.
//!
//! | module | what |
//! |---|---|
//! | [`cli`], [`cmd`] | the command line |
//! | [`up`], [`roles`], [`config`], [`app`] | `afterimage up`, `agent` and `appliance`: flags and files become settings |
//! | [`mgmt`], [`join`] | `afterimage mgmt`, `agent join` and `appliance join` |
//! | [`remote`] | the commands that ask mgmt over its API |
//! | [`daemon`], [`serve`] | the roles of a process, started, run, stopped |
//! | [`site`] | what the control socket can do, done by the roles |
//! | [`duty`], [`readiness`] | what mgmt is told over the session, and may ask |
//! | [`data`] | the data folder: lock and version |
//! | [`show`], [`restore`], [`export`] | the user's commands |
//! | [`attach`], [`attached`], [`mount`] | volumes as block devices of this machine: the commands, and who makes them |
//! | [`target`], [`failover`] | machines, and starting them from their history |
//! | [`files`] | files of a volume as they were |
//! | [`check`], [`dump`], [`ring_file`] | verification of, and a look into, the files of a data folder |
//! | [`verify`] | `afterimage verify`, both ends |
//! | [`demo`] | `afterimage demo` |
//! | [`load`] | the load generator and its judgement |
//! | [`image`] | a volume as it was, read as a whole |
//! | [`qcow2`] | qcow2 as a stream |
//! | [`progress`], [`screen`], [`signals`], [`notify`], [`problem`] | what all of them use |

pub mod app;
pub mod attach;
pub mod attached;
pub mod branch;
pub mod check;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod daemon;
pub mod data;
pub mod demo;
pub mod dump;
pub mod duty;
pub mod export;
pub mod failover;
pub mod files;
pub mod group;
pub mod image;
pub mod join;
pub mod load;
pub mod mgmt;
pub mod mount;
pub mod notify;
pub mod problem;
pub mod progress;
pub mod qcow2;
pub mod readiness;
pub mod remote;
pub mod restore;
pub mod ring_file;
pub mod roles;
pub mod screen;
pub mod serve;
pub mod show;
pub mod signals;
pub mod site;
pub mod target;
pub mod up;
pub mod verify;
