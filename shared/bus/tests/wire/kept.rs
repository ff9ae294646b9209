//! What was written by which build? A file of samples for each that is kept: `current.txt` is today's, `previous.txt`
//! that of the build before, which still runs somewhere while services are replaced.

use std::fs;
use std::path::PathBuf;

use crate::samples::Sample;

/// A sample as a file has it.
pub(crate) struct Kept {
    pub(crate) title: String,
    pub(crate) bytes: Vec<u8>,
    /// Without what is none, empty or false: a build that does not know of it says as much.
    pub(crate) means: String,
}

pub(crate) fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire").join(name)
}

/// Whether a printed line says anything.
pub(crate) fn says(line: &str) -> bool {
    ![": None,", ": false,", ": [],", ": {},", ": \"\","].iter().any(|it| line.ends_with(it))
}

/// What something means, as far as it says anything; what may be none means the same as what may not.
pub(crate) fn meaning(printed: &str) -> String {
    let (mut means, mut begun, mut open) = (String::new(), None, Vec::new());
    for line in printed.lines().filter(|line| says(line)) {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if text.starts_with(')') && open.last() == Some(&indent) {
            open.pop();
            continue;
        }
        let begins = begun.take().unwrap_or_else(|| " ".repeat(indent - 4 * open.len()));
        match text.strip_suffix("Some(") {
            Some(name) => {
                open.push(indent);
                begun = Some(begins + name);
            }
            None => means += &format!("{begins}{text}\n"),
        }
    }
    means
}

pub(crate) fn read(name: &str) -> Vec<Kept> {
    let text = fs::read_to_string(file(name)).unwrap_or_default();
    text.split("\n== ").skip(1).map(parse).collect()
}

fn parse(block: &str) -> Kept {
    let (title, rest) = block.split_once('\n').unwrap();
    let (written, means) = rest.split_once('\n').unwrap();
    let bytes = match written.strip_prefix("json ") {
        Some(json) => json.as_bytes().to_vec(),
        None => bytes_of(written.strip_prefix("hex ").unwrap()),
    };
    Kept { title: title.to_owned(), bytes, means: means.trim_end().to_owned() + "\n" }
}

pub(crate) fn text(samples: &[Sample]) -> String {
    let mut text =
        "What one build writes for the others: bytes, and what they mean. Written by a test, see main.rs.\n"
            .to_owned();
    for it in samples {
        let written = match it.is_json {
            true => format!("json {}", String::from_utf8_lossy(&it.bytes)),
            false => format!("hex {}", it.bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        };
        text += &format!("\n== {}\n{written}\n{}", it.title, meaning(&it.means));
    }
    text
}

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}
