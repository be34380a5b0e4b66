//! `choice --download` from a server on this machine that answers as Hugging Face does.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::{benchmark, command, save_run};

const COMMIT: &str = "5f1d4bbc4e9ad6a5ec9b9f1d3a1c1de0b2b0a001";
const API: &str = "/api/datasets/allenai/sciq/revision/refs%2Fconvert%2Fparquet";
const FILE: &str =
    "/datasets/allenai/sciq/resolve/refs%2Fconvert%2Fparquet/default/test/0000.parquet";
const STORE: &str = "/store/0000.parquet";

/// A hub with the test split of SciQ, which keeps its files in a store elsewhere, as large ones are.
struct Hub {
    url: String,
    /// Path and range of every request.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// `cut` is how many bytes a whole file lacks when it is sent.
    fn start(cut: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, own) = (requests.clone(), url.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &own, cut, &seen);
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

fn answer(mut stream: TcpStream, url: &str, cut: usize, seen: &Mutex<Vec<String>>) {
    let head = BufReader::new(&stream).lines().map(Result::unwrap);
    let head: Vec<String> = head.take_while(|line| !line.is_empty()).collect();
    let path = head[0].split(' ').nth(1).unwrap().to_owned();
    let range = head.iter().find_map(|line| {
        let (name, value) = line.split_once(": bytes=")?;
        name.eq_ignore_ascii_case("range").then(|| value.to_owned())
    });
    let range = range.unwrap_or_default();
    seen.lock()
        .unwrap()
        .push(format!("{path} {range}").trim_end().to_owned());
    let (status, headers, body) = match path.as_str() {
        API => {
            let files = [
                ".gitattributes",
                "default/test/0000.parquet",
                "default/train/0000.parquet",
            ];
            let siblings = files.map(|name| json!({ "rfilename": name }));
            let info = json!({ "id": "allenai/sciq", "sha": COMMIT, "siblings": siblings });
            ("200 OK", String::new(), info.to_string().into_bytes())
        }
        FILE => {
            let headers = format!(
                "Location: {url}{STORE}\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"c0ffee\"\r\n"
            );
            ("302 Found", headers, Vec::new())
        }
        STORE => {
            let whole = parquet();
            let (first, last) = range.split_once('-').unwrap();
            let first: usize = first.parse().unwrap();
            let last: usize = last.parse().unwrap_or(whole.len() - 1);
            let headers = format!("Content-Range: bytes {first}-{last}/{}\r\n", whole.len());
            ("206 Partial Content", headers, whole[first..=last].to_vec())
        }
        _ => ("404 Not Found", String::new(), Vec::new()),
    };
    let sent = match body.len() > 1 && path == STORE {
        true => body.len() - cut,
        false => body.len(),
    };
    let length = body.len();
    // The other side may be gone.
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    let _ = stream.write_all(&body[..sent]);
}

fn parquet() -> Vec<u8> {
    fs::read(benchmark("sciq/data/test-00000-of-00001.parquet")).unwrap()
}

/// Asks for a task whose data may have to be fetched into `data`.
fn choice(place: &Path, hub: &Hub, task: &str, data: &str) -> Result<Value, String> {
    let out = format!("results/{data}");
    let output = command(
        place,
        &[
            "choice",
            "--task",
            task,
            "--data",
            data,
            "--download",
            "--json",
            "--out",
            &out,
        ],
    )
    .env("HF_ENDPOINT", &hub.url)
    .env("HF_HOME", place.join("huggingface"))
    .output()
    .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!errors.contains("panicked"), "{errors}");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(errors),
    }
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_under(&path)),
            false => files.push(path),
        }
    }
    files
}

#[test]
fn a_split_is_fetched_once_kept_and_used() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    save_run(place, "demo-1");
    let hub = Hub::start(0);
    let report = choice(place, &hub, "sciq", "data").unwrap();
    let (probed, read) = (format!("{FILE} 0-0"), format!("{FILE} 0-"));
    let (probed_store, read_store) = (format!("{STORE} 0-0"), format!("{STORE} 0-"));
    assert_eq!(
        hub.requests(),
        [API, &probed, &probed_store, &read, &read_store]
    );
    let fetched = place.join("data/sciq/default/test/0000.parquet");
    assert_eq!(
        files_under(&place.join("data")),
        std::slice::from_ref(&fetched)
    );
    assert_eq!(fs::read(&fetched).unwrap(), parquet());
    let settings = &report["settings"]["files"];
    assert_eq!(settings[0]["path"], "data/sciq/default/test/0000.parquet");
    assert_eq!(report["result"][0]["answers"].as_array().unwrap().len(), 3);

    // It is there: nobody is asked.
    let again = choice(place, &hub, "sciq", "data").unwrap();
    assert_eq!(again["result"], report["result"]);
    assert!(hub.requests().is_empty());

    // For another folder it comes from the cache.
    let other = choice(place, &hub, "sciq", "other").unwrap();
    assert_eq!(other["result"], report["result"]);
    assert_eq!(hub.requests(), [API]);
}

#[test]
fn what_cannot_be_fetched_is_named_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    save_run(place, "demo-1");
    let hub = Hub::start(100);
    for (task, says) in [
        ("sciq", "--download: allenai/sciq: "),
        ("piqa", "--download: baber/piqa: "),
    ] {
        let error = choice(place, &hub, task, "data").unwrap_err();
        assert!(error.contains(says), "{error}");
        assert!(error.contains("datasets/README.md"), "{error}");
        assert!(files_under(&place.join("data")).is_empty());
    }
    // What came before the connection broke is not asked for again.
    hub.requests();
    let whole = Hub::start(0);
    choice(place, &whole, "sciq", "data").unwrap();
    let rest = format!("{STORE} {}-", parquet().len() - 100);
    assert_eq!(whole.requests().last(), Some(&rest));
    assert_eq!(
        fs::read(place.join("data/sciq/default/test/0000.parquet")).unwrap(),
        parquet()
    );
}
