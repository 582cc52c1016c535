package importer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"remaster/pkg/disk"
)

// cheapestPlan is the least number of bytes, and of parts for it, that an exhaustive
// search over all partitions finds. changed[i] says that byte i can't be copied.
func cheapestPlan(changed []bool, l Limits) (bytes, parts int64) {
	size := int64(len(changed))
	best := make([]cost, size+1)
	for i := range best {
		best[i] = cost{bytes: 1 << 40}
	}
	best[0] = cost{}
	for a := range size {
		copyable := true
		for b := a + 1; b <= size && b-a <= l.MaxPart; b++ {
			copyable = copyable && !changed[b-1]
			if b-a < l.MinPart && b < size {
				continue
			}
			c := best[a].plus(cost{b - a, 1})
			if copyable {
				c.bytes -= b - a
			}
			if c.compare(best[b], 0) < 0 {
				best[b] = c
			}
		}
	}
	return best[size].bytes, best[size].parts
}

// checkPlan fails if a plan is not one that the service takes and that gives the object.
func checkPlan(t *testing.T, plan []Piece, changed []bool, l Limits) (bytes int64) {
	t.Helper()
	at := int64(0)
	for i, p := range plan {
		if p.Off != at || p.Len < 1 || p.Len > l.MaxPart || p.Len < l.MinPart && i < len(plan)-1 {
			t.Fatalf("piece %d of %v is not allowed", i, plan)
		}
		if p.Copy && slices.Contains(changed[p.Off:p.End()], true) {
			t.Fatalf("piece %d of %v copies what changed", i, plan)
		}
		if !p.Copy {
			bytes += p.Len
		}
		at = p.End()
	}
	if at != int64(len(changed)) || len(plan) > l.Parts {
		t.Fatalf("%v does not make %d bytes in %d parts", plan, len(changed), l.Parts)
	}
	return bytes
}

// randomEdit returns which bytes of an object changed, and how large its base is.
func randomEdit(r *rand.Rand, size int) (changed []bool, base int64, ranges disk.Ranges) {
	changed = make([]bool, size)
	base = int64(size)
	if r.IntN(2) == 0 {
		base = r.Int64N(int64(size) + 1)
	}
	for range r.IntN(6) {
		off := r.Int64N(int64(size))
		ranges.Add(disk.Range{Off: off, Len: min(1+r.Int64N(6), int64(size)-off)})
	}
	for x := range ranges.All() {
		for i := x.Off; i < x.End(); i++ {
			changed[i] = true
		}
	}
	for i := base; i < int64(size); i++ {
		changed[i] = true
	}
	return changed, base, ranges
}

func TestPlanDeltaUploadsFewestBytesInFewestParts(t *testing.T) {
	for seed := range uint64(10_000) {
		r := rand.New(rand.NewPCG(seed, 1))
		changed, base, ranges := randomEdit(r, 1+r.IntN(60))
		l := Limits{MinPart: 1 + r.Int64N(8), MaxPart: 1000, Parts: 1000}
		plan, err := PlanDelta(int64(len(changed)), base, ranges.All(), l)
		if err != nil {
			t.Fatal(err)
		}
		got := checkPlan(t, plan, changed, l)
		bytes, parts := cheapestPlan(changed, l)
		if got != bytes || int64(len(plan)) != parts {
			t.Fatalf("seed %d, least part %d, changed %v of a base of %d in %d: uploads %d bytes in %d parts, could be %d in %d: %v",
				seed, l.MinPart, slices.Collect(ranges.All()), base, len(changed), got, len(plan), bytes, parts, plan)
		}
	}
}

func TestPlanDeltaKeepsToLargestPart(t *testing.T) {
	for seed := range uint64(10_000) {
		r := rand.New(rand.NewPCG(seed, 2))
		changed, base, ranges := randomEdit(r, 1+r.IntN(80))
		l := Limits{MinPart: 1 + r.Int64N(5), Parts: 1000}
		l.MaxPart = 2*l.MinPart + r.Int64N(9)
		plan, err := PlanDelta(int64(len(changed)), base, ranges.All(), l)
		if err != nil {
			t.Fatal(err)
		}
		got := checkPlan(t, plan, changed, l)
		if bytes, _ := cheapestPlan(changed, l); got != bytes {
			t.Fatalf("seed %d: uploads %d bytes, could be %d: %v", seed, got, bytes, plan)
		}
	}
}

func TestPlanDeltaKeepsToNumberOfParts(t *testing.T) {
	// Copies of 1, 2, … KiB between changes: the short ones are given up.
	l := Limits{MinPart: 100, MaxPart: 1 << 30, Parts: 21}
	var ranges disk.Ranges
	at := int64(0)
	for i := range int64(50) {
		ranges.Add(disk.Range{Off: at, Len: 200})
		at += 200 + 1024*(i+1)
	}
	changed := make([]bool, at)
	for x := range ranges.All() {
		for i := x.Off; i < x.End(); i++ {
			changed[i] = true
		}
	}
	plan, err := PlanDelta(at, at, ranges.All(), l)
	if err != nil {
		t.Fatal(err)
	}
	bytes := checkPlan(t, plan, changed, l)
	// 21 parts hold ten copies; the ten longest leave the other 40.
	want := int64(50 * 200)
	for i := range int64(40) {
		want += 1024 * (i + 1)
	}
	if bytes != want || len(plan) != 20 {
		t.Fatalf("uploads %d bytes in %d parts, want %d in 20", bytes, len(plan), want)
	}
}

func TestPlanDeltaOfRelocatedQcow2HasThreeParts(t *testing.T) {
	const base, size = 790 << 20, 792 << 20
	for _, changed := range []disk.Ranges{rangesOf(disk.Range{Off: 40, Len: 64}), rangesOf(disk.Range{Off: 40, Len: 64}, disk.Range{Off: base, Len: size - base})} {
		plan, err := PlanDelta(size, base, changed.All(), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		want := []Piece{{disk.Range{Len: 100 << 10}, false}, {disk.Range{Off: 100 << 10, Len: base - 100<<10}, true}, {disk.Range{Off: base, Len: size - base}, false}}
		if !slices.Equal(plan, want) {
			t.Fatalf("got %v", plan)
		}
	}
}

func rangesOf(rs ...disk.Range) (out disk.Ranges) {
	for _, r := range rs {
		out.Add(r)
	}
	return out
}

func TestPartSize(t *testing.T) {
	for _, c := range []struct{ size, want int64 }{
		{0, 8 << 20}, {1, 8 << 20}, {20 << 30, 8 << 20},
		{9000 * 8 << 20, 8 << 20}, {9000*8<<20 + 1, 9 << 20}, {48 << 40, 5593 << 20},
	} {
		if got := PartSize(c.size); got != c.want {
			t.Errorf("%d: %d, want %d", c.size, got, c.want)
		}
	}
}

func BenchmarkPlanDelta(b *testing.B) {
	for _, n := range []int{20, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			var ranges disk.Ranges
			at := int64(0)
			for range n {
				at += 4096 * (1 + r.Int64N(200))
				ranges.Add(disk.Range{Off: at, Len: 4096})
				at += 4096
			}
			for b.Loop() {
				if _, err := PlanDelta(at, at, ranges.All(), Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
