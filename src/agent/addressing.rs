//! Addresses: pools and who has what, durable before it is answered.
