//! Which rail brings which part of a request (pure): the one that has the least to do when it is that part's turn.

/// For each part, by its bytes, one of the rails, by what each has under way already. Nothing where there is no rail.
#[must_use]
pub fn spread(parts: impl IntoIterator<Item = u64>, under_way: &[u64]) -> Vec<usize> {
    let mut loads = under_way.to_vec();
    let rail = |bytes: u64| {
        let (rail, load) = loads.iter_mut().enumerate().min_by_key(|(_, load)| **load)?;
        *load = load.saturating_add(bytes);
        Some(rail)
    };
    parts.into_iter().map_while(rail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rail_with_the_least_to_do_takes_the_next_part() {
        assert_eq!(spread([5, 5, 5, 5], &[0, 0]), [0, 1, 0, 1]);
        assert_eq!(spread([10, 1, 1, 1], &[0, 0]), [0, 1, 1, 1]);
        assert_eq!(spread([4, 4, 4], &[100, 0, 96]), [1, 1, 1], "others' parts count");
        assert_eq!(spread([1, 2], &[7]), [0, 0]);
        assert!(spread([1, 2], &[]).is_empty());
    }
}
