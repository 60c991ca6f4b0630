//! The reference service: users, products and orders, with every Greenwave technique in use.
