package disk

import (
	"iter"
	"slices"
	"sort"
)

// Ranges is a set of bytes kept as sorted ranges that neither touch nor overlap.
// The zero value is the empty set. It is not safe for concurrent use.
type Ranges struct{ r []Range }

// Add puts the bytes of x into the set.
func (s *Ranges) Add(x Range) {
	if x.Len <= 0 {
		return
	}
	// Appending in order is the usual case.
	if n := len(s.r); n == 0 || s.r[n-1].End() < x.Off {
		s.r = append(s.r, x)
		return
	}
	i := sort.Search(len(s.r), func(i int) bool { return s.r[i].End() >= x.Off })
	j := i
	end := x.End()
	for j < len(s.r) && s.r[j].Off <= end {
		j++
	}
	if i < j {
		x.Off = min(x.Off, s.r[i].Off)
		x.Len = max(end, s.r[j-1].End()) - x.Off
	}
	s.r = slices.Replace(s.r, i, j, x)
}

// All yields the ranges in order.
func (s *Ranges) All() iter.Seq[Range] { return slices.Values(s.r) }

// In yields the parts of the set that lie in x, in order.
func (s *Ranges) In(x Range) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		i := sort.Search(len(s.r), func(i int) bool { return s.r[i].End() > x.Off })
		for ; i < len(s.r) && s.r[i].Off < x.End(); i++ {
			if !yield(s.r[i].Intersect(x)) {
				return
			}
		}
	}
}

// Count returns the number of ranges, Len the number of bytes in them.
func (s *Ranges) Count() int { return len(s.r) }

// Len returns the number of bytes in the set.
func (s *Ranges) Len() int64 {
	var n int64
	for _, r := range s.r {
		n += r.Len
	}
	return n
}
