//! Server-sent events, read from an answer as it comes.
//!
//! Absent: the `retry` field, since who reads decides when to connect again.

use std::io::{BufRead as _, BufReader, Read};

/// The longest line: a job with its prompts, and room to spare.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Its name; `message` if the server gave none.
    pub name: String,
    /// To be sent as `Last-Event-ID` when connecting again; empty if there is none.
    pub id: String,
    /// Its data, lines joined by newlines.
    pub data: String,
}

/// Makes events of lines.
#[derive(Debug, Default)]
pub struct Parser {
    name: String,
    id: String,
    data: Option<String>,
}

impl Parser {
    /// Takes the next line, without its end; gives the event that it completes.
    pub fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            let data = self.data.take()?;
            let name = if name.is_empty() { "message".to_string() } else { name };
            return Some(Event { name, id: self.id.clone(), data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_string()),
            },
            // Comments (which keep the connection alive) and fields of later versions.
            _ => {}
        }
        None
    }
}

/// The events of an answer; an event that is cut off by its end does not count.
pub fn events(answer: impl Read) -> impl Iterator<Item = std::io::Result<Event>> {
    let mut reader = BufReader::new(answer);
    let mut parser = Parser::default();
    std::iter::from_fn(move || {
        loop {
            let mut line = Vec::new();
            match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                Err(error) => return Some(Err(error)),
                Ok(_) if line.pop() != Some(b'\n') => return None,
                Ok(_) => {}
            }
            let line = String::from_utf8_lossy(&line);
            if let Some(event) = parser.line(line.strip_suffix('\r').unwrap_or(&line)) {
                return Some(Ok(event));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{Event, events};

    fn read(text: &str) -> Vec<(String, String, String)> {
        let read = events(text.as_bytes()).map(|event| event.expect("memory does not fail"));
        read.map(|Event { name, id, data }| (name, id, data)).collect()
    }

    fn event(name: &str, id: &str, data: &str) -> (String, String, String) {
        (name.to_string(), id.to_string(), data.to_string())
    }

    #[test]
    fn events_are_read_as_the_standard_writes_them() {
        let text = ": hello\n\nevent: job\nid: 7\ndata: {\"a\":1}\n\ndata:x\r\ndata: y\r\n\r\n";
        assert_eq!(read(text), [event("job", "7", "{\"a\":1}"), event("message", "7", "x\ny")]);
    }

    #[test]
    fn an_event_without_data_and_one_that_is_cut_off_do_not_count() {
        assert_eq!(read("event: job\n\n"), []);
        assert_eq!(read("data: x\n"), []);
        assert_eq!(read("data: x\n\ndata: y"), [event("message", "", "x")]);
        assert_eq!(read("data\n\n"), [event("message", "", "")]);
    }

    #[test]
    fn a_name_holds_for_one_event_and_unknown_fields_are_passed_over() {
        let text = "event: job\ndata: 1\n\nretry: 5\nfuture: x\ndata: 2\n\n";
        assert_eq!(read(text), [event("job", "", "1"), event("message", "", "2")]);
    }
}
