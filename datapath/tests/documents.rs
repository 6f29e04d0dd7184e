//! What documents say of lanes is what the program says.

use datapath::transport::rdma::reason::Reason;

#[test]
fn the_page_on_rdma_has_every_reason_with_its_hint_in_order() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/rdma.md");
    let text = std::fs::read_to_string(page).expect("the page is there");
    let (_, table) =
        text.split_once("| reason | means | what to do |\n|---|---|---|\n").expect("a table of reasons");
    let rows = table.lines().map_while(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    let said: Vec<_> = rows
        .map(|row| {
            let cells: Vec<_> = row.split(" | ").collect();
            let [word, meaning, hint] = cells[..] else { panic!("three cells in {row}") };
            assert!(!meaning.is_empty(), "{row}");
            (word.trim_end_matches('`').to_owned(), hint.to_owned())
        })
        .collect();
    let meant: Vec<_> =
        Reason::ALL.iter().map(|reason| (reason.word().to_owned(), reason.hint().to_owned())).collect();
    assert_eq!(said, meant, "docs/rdma.md, \"Reasons\"");
}
