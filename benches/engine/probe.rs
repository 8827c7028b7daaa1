//! Two ends of a conversation, each in a network of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

/// Answers every byte with one, on every connection.
pub fn answer(port: &str) {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).expect("to listen");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || echo(stream));
    }
}

fn echo(mut stream: TcpStream) {
    stream.set_nodelay(true).expect("a TCP socket");
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

/// Prints the microseconds of a question and its answer, the median of `rounds`.
pub fn ask(address: &str, rounds: &str) {
    let mut stream = TcpStream::connect(address).expect("to connect");
    stream.set_nodelay(true).expect("a TCP socket");
    let mut round = || {
        let (start, mut byte) = (Instant::now(), [1]);
        stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)).expect("an answer");
        start.elapsed().as_secs_f64() * 1e6
    };
    println!("{}", crate::report::median((0..number(rounds)).map(|_| round()).collect()));
}

/// Prints questions and answers a second, and the microseconds of one: the median, what 99 of 100 take at most, and 999 of 1,000.
pub fn latency(address: &str, rounds: &str) {
    let mut stream = TcpStream::connect(address).expect("to connect");
    stream.set_nodelay(true).expect("a TCP socket");
    let begin = Instant::now();
    let mut round = || {
        let (start, mut byte) = (Instant::now(), [1]);
        stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)).expect("an answer");
        start.elapsed().as_secs_f64() * 1e6
    };
    let mut times: Vec<f64> = (0..number(rounds)).map(|_| round()).collect();
    let rate = f64::from(number(rounds)) / begin.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let [half, most, worst] = [0.5, 0.99, 0.999].map(|part| times[(times.len() as f64 * part) as usize]);
    println!("{rate} {half} {most} {worst}");
}

/// Prints how many connections a second were made, asked something and closed, one after the other.
pub fn connect(address: &str, rounds: &str) {
    let start = Instant::now();
    for _ in 0..number(rounds) {
        let mut stream = TcpStream::connect(address).expect("to connect");
        let mut byte = [1];
        stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)).expect("an answer");
    }
    println!("{}", f64::from(number(rounds)) / start.elapsed().as_secs_f64());
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number")
}
