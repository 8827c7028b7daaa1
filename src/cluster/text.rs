use std::fmt::Display;

/// `10.50.0.0/16 and fd00::/64`
pub fn list(items: &[impl Display]) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(" and ") }
}
