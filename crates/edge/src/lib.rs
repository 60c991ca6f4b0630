//! Supervises instances of any command, checks their health and balances requests over them.
