package importer

import (
	"cmp"
	"fmt"
	"iter"
	"slices"

	"remaster/pkg/disk"
)

// Limits are what a multipart upload is held to. The zero value stands for those of OSS:
// parts of 100 KiB to 5 GiB (the last one may be smaller), at most 10,000 of them
// ("Limits" of the OSS developer guide, "UploadPartCopy").
type Limits struct {
	MinPart, MaxPart int64 // bytes; MaxPart is at least twice MinPart
	Parts            int
}

func (l Limits) withDefaults() Limits {
	if l.MinPart == 0 {
		l.MinPart = 100 << 10
	}
	if l.MaxPart == 0 {
		l.MaxPart = 5 << 30
	}
	if l.Parts == 0 {
		l.Parts = 10_000
	}
	return l
}

// Piece is a part of an upload to be made: a copy of the same bytes of the base, or an
// upload.
type Piece struct {
	disk.Range
	Copy bool
}

const (
	minPartSize = 8 << 20
	// plannedParts leaves room below the limit, as the reference has it.
	plannedParts = 9000
)

// PartSize returns the part size for an upload of size bytes: 8 MiB, or for objects
// beyond 70 GiB as many MiB as keep it within 9,000 parts.
func PartSize(size int64) int64 {
	const mib = 1 << 20
	perPart := size/plannedParts + min(size%plannedParts, 1)
	return max(minPartSize, (perPart+mib-1)/mib*mib)
}

// PlanUpload cuts size bytes into uploads of partSize, the last one smaller. An object
// without bytes is one empty piece.
func PlanUpload(size, partSize int64) []Piece {
	if size == 0 {
		return []Piece{{}}
	}
	var out []Piece
	for off := int64(0); off < size; off += partSize {
		out = append(out, Piece{Range: disk.Range{Off: off, Len: min(partSize, size-off)}})
	}
	return out
}

// PlanDelta cuts an object of size bytes into copies of a base of baseSize bytes, at the
// same offsets, and uploads, so that the fewest bytes are uploaded and, among those
// plans, the fewest parts are made. changed is where the object differs within the base,
// in order; behind the base's end everything does. Copies hold none of it.
//
// If this takes more parts than there may be, short copies are given up first.
func PlanDelta(size, baseSize int64, changed iter.Seq[disk.Range], l Limits) ([]Piece, error) {
	l = l.withDefaults()
	if size <= 0 || l.MinPart < 1 || l.MaxPart < 2*l.MinPart || l.Parts < 1 || size > l.MaxPart*int64(l.Parts)/2 {
		return nil, fmt.Errorf("no plan for %d bytes in %d parts of %d to %d bytes", size, l.Parts, l.MinPart, l.MaxPart)
	}
	gaps := copyable(size, baseSize, changed, l)
	plan := planCopies(gaps, size, l, 0)
	if len(plan) <= l.Parts {
		return plan, nil
	}
	// Each copy costs a part for itself and one for the upload behind it: with a price
	// on parts, in bytes, the cheapest plan is the one that copies what is worth it.
	// The least price that is enough is found by bisection.
	low, high := int64(0), size
	best := planCopies(gaps, size, l, high)
	for low+1 < high {
		price := low + (high-low)/2
		if p := planCopies(gaps, size, l, price); len(p) <= l.Parts {
			best, high = p, price
		} else {
			low = price
		}
	}
	return best, nil
}

// copyable returns the unchanged ranges of the base that a part can be a copy of.
func copyable(size, baseSize int64, changed iter.Seq[disk.Range], l Limits) []disk.Range {
	var gaps []disk.Range
	whole := disk.Range{Len: min(size, baseSize)}
	at := int64(0)
	add := func(end int64) {
		// Only the last part may be smaller.
		if n := end - at; n >= l.MinPart || n > 0 && end == size {
			gaps = append(gaps, disk.Range{Off: at, Len: n})
		}
	}
	for r := range changed {
		if r = r.Intersect(whole); r.Len > 0 {
			add(r.Off)
			at = r.End()
		}
	}
	add(whole.Len)
	return gaps
}

// cost is what a plan, or a part of one, costs.
type cost struct {
	bytes int64 // uploaded
	parts int64
}

func (c cost) plus(d cost) cost { return cost{c.bytes + d.bytes, c.parts + d.parts} }

// compare orders costs by bytes, each part counting as price of them, and then by parts.
func (c cost) compare(d cost, price int64) int {
	if price > 0 {
		if x := cmp.Compare(float64(c.bytes-d.bytes), float64(d.parts-c.parts)*float64(price)); x != 0 {
			return x
		}
	}
	return cmp.Or(cmp.Compare(c.bytes, d.bytes), cmp.Compare(c.parts, d.parts))
}

// copyPlan is a plan up to the end of its last copy.
type copyPlan struct {
	prev *copyPlan
	gap  int   // the last gap that is copied; -1: none
	end  int64 // where it ends
	head int64 // what is left out of its beginning
	room int64 // what can be left out of its end
	cost cost
}

// with returns p with an upload up to gap i and a copy of that one, or nil if too little
// of the gap is left.
func (p *copyPlan) with(i int, g disk.Range, size int64, l Limits) *copyPlan {
	n := g.Off - p.end
	lack := int64(0)
	if n > 0 {
		lack = max(0, l.MinPart-n)
	}
	head := max(0, lack-p.room)
	room := g.Len - head - l.MinPart
	if g.End() == size {
		room = g.Len - head - 1 // the last part may be small
	}
	if room < 0 {
		return nil
	}
	return &copyPlan{prev: p, gap: i, end: g.End(), head: head, room: room,
		cost: p.cost.plus(cost{n + lack, l.parts(n+lack) + l.parts(g.Len-head)})}
}

// upTo is the cost of p with an upload from its end on.
func (p *copyPlan) upTo(end int64, l Limits) cost {
	return p.cost.plus(cost{end - p.end, l.parts(end - p.end)})
}

// planCopies chooses the gaps to copy. price is what a part costs beside its bytes.
//
// An upload between two copies must have MinPart bytes, and takes what it lacks from the
// unchanged bytes on its sides. From which side is all one for the number of bytes, unless
// it leaves a gap with less than MinPart, which then can't be copied. To take from the
// left as much as possible leaves the most for the uploads behind. So a plan is told by
// the gaps it copies, and all that its future depends on is how much of the last one's
// beginning is gone: of the plans that copy gap i last, those remain that no other one
// beats in cost and head. A gap has MinPart bytes at least (but for one at the object's
// end), so that an upload in place of a whole gap lacks nothing, and of the plans that do
// not copy gap i the cheapest one remains.
func planCopies(gaps []disk.Range, size int64, l Limits, price int64) []Piece {
	without := &copyPlan{gap: -1} // the best plan that does not copy the gap before
	var with []*copyPlan          // those that do
	for i, g := range gaps {
		var next []*copyPlan
		for _, p := range append(with, without) {
			if q := p.with(i, g, size, l); q != nil {
				next = append(next, q)
			}
		}
		without = cheapest(without, with, g.Off, l, price)
		with = undominated(next, price)
	}
	return cheapest(without, with, size, l, price).pieces(gaps, size, l)
}

// cheapest returns the plan that costs the least if all else up to end is uploaded.
func cheapest(best *copyPlan, ps []*copyPlan, end int64, l Limits, price int64) *copyPlan {
	for _, p := range ps {
		if p.upTo(end, l).compare(best.upTo(end, l), price) < 0 {
			best = p
		}
	}
	return best
}

// undominated returns the plans that no other one beats, by rising head.
func undominated(ps []*copyPlan, price int64) []*copyPlan {
	slices.SortStableFunc(ps, func(a, b *copyPlan) int {
		return cmp.Or(cmp.Compare(a.head, b.head), a.cost.compare(b.cost, price))
	})
	out := ps[:0]
	for _, p := range ps {
		if len(out) == 0 || p.cost.compare(out[len(out)-1].cost, price) < 0 {
			out = append(out, p)
		}
	}
	return out
}

// pieces returns the parts of a plan.
func (p *copyPlan) pieces(gaps []disk.Range, size int64, l Limits) []Piece {
	var copies []disk.Range
	for tail := int64(0); p.gap >= 0; p = p.prev {
		g := gaps[p.gap]
		copies = append(copies, disk.Range{Off: g.Off + p.head, Len: g.Len - p.head - tail})
		// What this copy's beginning was not cut by, the one before lost at its end.
		tail = 0
		if n := g.Off - p.prev.end; n > 0 {
			tail = max(0, l.MinPart-n) - p.head
		}
	}
	slices.Reverse(copies)
	var out []Piece
	at := int64(0)
	for _, c := range copies {
		out = split(out, Piece{Range: disk.Range{Off: at, Len: c.Off - at}}, l.MaxPart)
		out = split(out, Piece{c, true}, l.MaxPart)
		at = c.End()
	}
	return split(out, Piece{Range: disk.Range{Off: at, Len: size - at}}, l.MaxPart)
}

// parts returns the number of parts that n bytes take.
func (l Limits) parts(n int64) int64 { return (n + l.MaxPart - 1) / l.MaxPart }

// split appends p as pieces of about the same size, none of more than most bytes.
func split(out []Piece, p Piece, most int64) []Piece {
	n := (p.Len + most - 1) / most
	for at, i := p.Off, int64(0); i < n; i++ {
		size := (p.End() - at) / (n - i)
		out = append(out, Piece{disk.Range{Off: at, Len: size}, p.Copy})
		at += size
	}
	return out
}
