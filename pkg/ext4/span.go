package ext4

import (
	"cmp"
	"slices"
	"sort"
)

// mergeSpans sorts spans and joins those that touch or overlap.
func mergeSpans(in []span) []span {
	slices.SortFunc(in, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	out := in[:0]
	for _, s := range in {
		if n := len(out); n > 0 && s.first <= out[n-1].first+out[n-1].n {
			out[n-1].n = max(out[n-1].n, s.first+s.n-out[n-1].first)
			continue
		}
		out = append(out, s)
	}
	return out
}

// overlaps reports whether any of the n blocks at first lies in spans, which are
// sorted and apart.
func overlaps(spans []span, first, n uint64) bool {
	i := sort.Search(len(spans), func(i int) bool { return spans[i].first+spans[i].n > first })
	return i < len(spans) && spans[i].first < first+n
}
