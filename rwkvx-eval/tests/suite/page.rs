//! The page of all results, from runs of every benchmark to a browser.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::{benchmark, program, save_run, succeed};

/// Runs every benchmark on two readings of a model, and makes the page of them.
fn page(place: &Path) -> String {
    save_run(place, "demo-1");
    let text: String = (0..900u32)
        .map(|at| char::from(97 + (at * at % 26) as u8))
        .collect();
    fs::write(place.join("book.txt"), text).unwrap();
    let data = benchmark("");
    let data = data.to_str().unwrap();
    let lambada = benchmark("lambada/test.jsonl");
    let needles = [
        "--len",
        "600,1K",
        "--depths",
        "3",
        "--samples",
        "1",
        "--answer-tokens",
        "40",
    ];
    for (chunks, folder) in [("32", "a"), ("8", "b")] {
        for (name, arguments) in [
            ("choice", &["choice", "--task", "all", "--data", data][..]),
            (
                "lambada",
                &["lambada", lambada.to_str().unwrap(), "--limit", "2"],
            ),
            ("sniah", &[&["sniah"], &needles[..]].concat()),
            (
                "passkey",
                &[
                    "passkey",
                    "--len",
                    "300,600",
                    "--depths",
                    "2",
                    "--samples",
                    "1",
                ],
            ),
            (
                "facts",
                &["facts", "--facts", "2,4", "--len", "500,1K", "--texts", "2"],
            ),
            (
                "perplexity",
                &[
                    "perplexity",
                    "book.txt",
                    "--len",
                    "100,400",
                    "--skip",
                    "50",
                    "--parts",
                    "4",
                ],
            ),
        ] {
            let out = format!("results/{folder}/{name}");
            succeed(
                place,
                &[arguments, &["--chunk-size", chunks, "--out", &out]].concat(),
            );
        }
    }
    let latency = ["latency", "--len", "64,300", "--tokens", "2"];
    succeed(
        place,
        &[&latency[..], &["--out", "results/latency"]].concat(),
    );

    save_training(&place.join("results/trained"));

    let said = succeed(place, &["report", "results", "--title", "Small <models>"]);
    assert!(said.contains("reports: 13, training runs: 1"), "{said}");
    fs::read_to_string(place.join("report.html")).unwrap()
}

/// What `rwkvx-train` leaves of a run, before its last line is whole.
fn save_training(run: &Path) {
    fs::create_dir_all(run).unwrap();
    fs::write(run.join("config.json"), r#"{ "name": "few-steps" }"#).unwrap();
    let report = json!({ "run": "runs/trained", "phases": [], "answers": [] });
    fs::write(run.join("report.json"), report.to_string()).unwrap();
    let mut metrics = String::new();
    for (stage, steps) in [("base", 300), ("stage1", 40), ("rwkv7-stage1", 40)] {
        for step in 1..=steps {
            let nll = 2.0 + 3.0 / f64::from(step);
            let mut line = json!({
                "stage": stage, "step": step, "loss": 1.5 * nll, "nll": nll, "lr": 1e-3, "tokens": 4096 * step,
                "tokens_per_second": 1e4, "memory_bytes": 1 << 30, "grad_norm": 0.5
            });
            if stage != "base" {
                line["answer_nll"] = json!(nll / 2.0);
            }
            metrics += &format!("{line}\n");
        }
    }
    fs::write(run.join("metrics.jsonl"), metrics + "{\"stage\":").unwrap();
}

#[test]
fn the_page_holds_every_result_beside_the_papers() {
    let place = tempfile::tempdir().unwrap();
    let page = page(place.path());
    for part in [
        "<title>Small &lt;models&gt;</title>",
        // Models and their readings.
        "32 x 2",
        "8 x 2",
        // The paper's tables 2 and 3.
        "<td>RWKV-X-3.6B</td>",
        "<td>71.9</td>",
        "<td>95.6</td>",
        "asked of: demo-1 lambada 2, demo-1-2 lambada 2.",
        "HellaSwag",
        "3: UUID in essays",
        "of 3</small>",
        "demo-1: number",
        "demo-1-2: passkey protocol",
        "Many facts in one text",
        "demo-1, 1K tokens",
        "of 8</small>",
        "500 tokens, percent right",
        "Loss by position",
        "nats at 400",
        "demo-1, rwkv7",
        "<td>300</td>",
        "trained, base: nats per token<",
        "trained, stage1: nats per token of answers",
        "<td>trained, rwkv7-stage1</td><td>40</td><td>163840</td>",
        "&quot;few-steps&quot;",
        "prefers-color-scheme: dark",
        "&quot;seed&quot;: 42",
    ] {
        assert!(page.contains(part), "`{part}` is not on the page");
    }
    // Three tasks and the passkey protocol of two readings.
    assert_eq!(page.matches("<svg class=map").count(), 8);
    assert_eq!(page.matches("<svg class=chart").count(), 10);
    assert_eq!(page.matches("<details>").count(), 14);
    // It needs nothing from elsewhere, and runs nothing.
    for part in ["<script", "src=", "@import", "url("] {
        assert!(!page.contains(part), "`{part}` is on the page");
    }
    assert!(!page.contains("NaN") && !page.contains("undefined"));
    look(place.path());
}

/// Opens the page in Chromium, if there is one: nothing is wider than the window, wide or narrow. With `SCREENSHOTS` it
/// leaves pictures in that folder.
fn look(place: &Path) {
    let Ok(version) = Command::new("chromium").arg("--version").output() else {
        eprintln!("chromium is not installed: the page was not looked at");
        return;
    };
    assert!(version.status.success());
    let chromium = |arguments: &[&str]| {
        let output = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
            ])
            .args(arguments)
            .current_dir(place)
            .env("HOME", place)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let url = |name: &str| format!("file://{}", place.join(name).display());
    // A frame has any width, which a window has not.
    let page = fs::read_to_string(place.join("report.html")).unwrap();
    let measure = "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth, \
                   document.querySelectorAll('svg').length], '*')</script>";
    fs::write(place.join("measured.html"), page + measure).unwrap();
    for width in [390, 1280] {
        let frame = format!(
            "<script>onmessage = event => document.title = event.data.join()</script>\
             <iframe src=measured.html width={width} height=2000 style='border:0'></iframe>"
        );
        fs::write(place.join("frame.html"), frame).unwrap();
        let dom = chromium(&[
            "--virtual-time-budget=3000",
            "--dump-dom",
            &url("frame.html"),
        ]);
        let found = format!("<title>{width},{width},18</title>");
        assert!(
            dom.contains(&found),
            "{width}: {}",
            &dom[..dom.len().min(300)]
        );
    }
    if let Ok(folder) = std::env::var("SCREENSHOTS") {
        for (name, scheme, width, height) in [
            ("light", 1, 1280, 5400),
            ("dark", 0, 1280, 5400),
            ("phone", 1, 500, 7600),
        ] {
            let file = format!("--screenshot={folder}/{name}.png");
            let size = format!("--window-size={width},{height}");
            let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
            chromium(&[&file, &size, &scheme, &url("report.html")]);
        }
    }
}

#[test]
fn a_run_in_training_has_a_page_of_its_own() {
    let place = tempfile::tempdir().unwrap();
    save_training(&place.path().join("runs/trained"));
    let said = succeed(place.path(), &["report", "--out", "pages/new.html"]);
    assert!(said.contains("reports: 0, training runs: 1"), "{said}");
    let page = fs::read_to_string(place.path().join("pages/new.html")).unwrap();
    assert!(page.contains("<h2>Training</h2>") && !page.contains("<h2>Models</h2>"));
}

#[test]
fn what_is_no_report_is_named() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("empty")).unwrap();
    fs::create_dir(place.path().join("old")).unwrap();
    let old =
        json!({ "benchmark": "sniah", "program": {}, "model": {}, "settings": {}, "result": [] });
    fs::write(place.path().join("old/report.json"), old.to_string()).unwrap();
    for (arguments, says) in [
        (&["report"][..], "runs"),
        (
            &["report", "empty"],
            "empty: the folder holds no report.json of rwkvx-eval and no run of rwkvx-train",
        ),
        (&["report", "none.json"], "none.json"),
        (
            &["report", "old"],
            "old/report.json: not a report of this version",
        ),
    ] {
        let output = program(place.path(), arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(says),
            "{errors}"
        );
        assert!(!place.path().join("report.html").exists());
    }
}
