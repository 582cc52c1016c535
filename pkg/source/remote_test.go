package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"golang.org/x/sync/errgroup"

	"remaster/pkg/disk"
)

// ranger serves ranges of its bytes; a call fails while broken is set.
type ranger struct {
	data   []byte
	broken error
}

func (r *ranger) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := errors.Join(ctx.Err(), r.broken); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(r.data[off:min(off+n, int64(len(r.data)))])), nil
}

func remoteBytes(n int) []byte {
	rng := rand.New(rand.NewPCG(7, 7))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func TestRemoteIsAReaderAt(t *testing.T) {
	r := &ranger{data: remoteBytes(50_001)}
	m := NewRemote(context.Background(), r, 50_001, RemoteOptions{BlockSize: 4096, CacheSize: 3 * 4096})
	if err := iotest.TestReader(io.NewSectionReader(m, 0, m.Size()), r.data); err != nil {
		t.Error(err)
	}
}

func TestRemoteFetchesABlockOnce(t *testing.T) {
	r := &ranger{data: remoteBytes(1 << 20)}
	m := NewRemote(context.Background(), r, 1<<20, RemoteOptions{BlockSize: 64 << 10})
	p := make([]byte, 4096)
	for range 3 {
		for _, off := range []int64{0, 8192, 60_000, 200_000} {
			if err := disk.ReadFull(m, p, off); err != nil || !bytes.Equal(p, r.data[off:off+4096]) {
				t.Fatalf("at %d: %v", off, err)
			}
		}
	}
	if n, got := m.Traffic(); n != 2 || got != 2*64<<10 {
		t.Errorf("%d requests for %d bytes, want 2 for %d", n, got, 2*64<<10)
	}
	// A run of missing blocks is one request, and a long read passes the cache by.
	if err := disk.ReadFull(m, make([]byte, 300_000), 400_000); err != nil {
		t.Fatal(err)
	}
	if n, _ := m.Traffic(); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
	long := make([]byte, direct)
	if err := disk.ReadFull(m, long, 0); err != nil || !bytes.Equal(long, r.data[:direct]) {
		t.Fatal(err)
	}
	if n, _ := m.Traffic(); n != 4 {
		t.Errorf("%d requests, want 4", n)
	}
}

func TestRemoteReadersSeeTheSameBytes(t *testing.T) {
	r := &ranger{data: remoteBytes(300_000)}
	m := NewRemote(context.Background(), r, 300_000, RemoteOptions{BlockSize: 4096, CacheSize: 8 * 4096})
	var g errgroup.Group
	for seed := range uint64(4) {
		g.Go(func() error {
			rng := rand.New(rand.NewPCG(seed, 1))
			for range 300 {
				off := rng.IntN(len(r.data))
				p := make([]byte, rng.IntN(min(len(r.data)-off, 50_000))+1)
				if err := disk.ReadFull(m, p, int64(off)); err != nil {
					return err
				}
				if !bytes.Equal(p, r.data[off:off+len(p)]) {
					return errors.New("other bytes")
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if n := m.recent.Len(); n > 8 || n != len(m.blocks) {
		t.Errorf("%d blocks in a cache of 8, %d in its index", n, len(m.blocks))
	}
}

func TestRemoteErrorsPassThrough(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &ranger{data: remoteBytes(100)}
	m := NewRemote(ctx, r, 200, RemoteOptions{}) // longer than what is there
	if err := disk.ReadFull(m, make([]byte, 10), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short body: %v", err)
	}
	r.broken = errors.New("no route")
	if _, err := m.ReadAt(make([]byte, 10), 0); !errors.Is(err, r.broken) {
		t.Errorf("%v", err)
	}
	r.broken = nil
	cancel()
	if _, err := m.ReadAt(make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
