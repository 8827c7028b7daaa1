//! Nanoseconds per allocation in an IPv4 /12: a million in order, then after half of them were freed at random.
//! `cargo bench --bench addresses`

use std::hint::black_box;
use std::time::Instant;

use rand::seq::SliceRandom;
use rsnet::addresses::Pool;

const MILLION: usize = 1_000_000;

fn main() {
    let subnet = "172.16.0.0/12".parse().expect("a subnet");
    let mut pool = Pool::new(subnet, None).expect("a pool");
    let mut held = Vec::with_capacity(MILLION);
    timed("allocate, fresh", MILLION, || {
        held.extend((0..MILLION).map(|_| pool.allocate().expect("free").address));
    });
    held.shuffle(&mut rand::rng());
    let half = held.split_off(MILLION / 2);
    timed("release, at random", half.len(), || {
        for address in &half {
            black_box(pool.release(*address));
        }
    });
    timed("allocate, half freed", half.len(), || {
        for _ in &half {
            black_box(pool.allocate().expect("free"));
        }
    });
    let records: Vec<_> = pool.records().collect();
    timed("restore from records", records.len(), || {
        let mut again = Pool::new(subnet, None).expect("a pool");
        records.iter().for_each(|record| again.restore(*record).expect("whole"));
    });
}

fn timed(what: &str, count: usize, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    println!("{what:<24} {:>7.1} ns each", start.elapsed().as_nanos() as f64 / count as f64);
}
