//! What is true: the durable record of everything, and the disk it stands on. Knows neither the world nor the face.

pub mod adoption;
pub mod degraded;
pub mod disk;
pub mod driver;
pub mod room;
pub mod store;
pub mod view;
pub mod wal;
