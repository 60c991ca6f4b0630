//! Advice as text: for a terminal, and as a migration.

use std::fmt;

use super::Advice;

impl Advice {
    /// A migration file that creates the indexes.
    pub fn migration(&self) -> String {
        String::new()
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
