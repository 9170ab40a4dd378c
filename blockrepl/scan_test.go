package blockrepl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sums are those of a standby's halves, as its node would answer.
func (h *host) sums() Sums {
	return func(ctx context.Context, p Part) ([]byte, error) {
		for _, d := range h.disks {
			if d.Name != p.Disk {
				continue
			}
			c, err := OpenContent(ctx, d, h.to, nil)
			if err != nil {
				return nil, err
			}
			defer c.Close()
			return c.Sums(ctx, p)
		}
		return nil, errors.New("no such disk")
	}
}

func (h *host) scan(peer *host) *Scan {
	return &Scan{Peer: peer.sums(), Socket: filepath.Join(h.dir, "scan")}
}

// differing counts the bytes, in blocks of a hash, in which the halves of two
// hosts differ, through qemu-img's eyes.
func (h *host) differing(ctx context.Context, other *host) int64 {
	h.t.Helper()
	var n int64
	for i, d := range h.disks {
		a, b := h.content(ctx, d), other.content(ctx, other.disks[i])
		for at := 0; at < len(a); at += HashBlock {
			if !bytes.Equal(a[at:at+HashBlock], b[at:at+HashBlock]) {
				n += HashBlock
			}
		}
	}
	return n
}

func (h *host) content(ctx context.Context, d Disk) []byte {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), "content")
	_, err := images(h.t).run(ctx, "convert", "-U", "-f", d.Format, "-O", "raw", d.Path, path)
	must(h.t, err)
	b, err := os.ReadFile(path)
	must(h.t, err)
	return b
}

// TestSums: hashes of files with holes, data, zeroes and odd ends are those of
// what is read from them, and the same for both formats.
func TestSums(t *testing.T) {
	const size = 5*HashBlock + 1536
	dir := t.TempDir()
	d := Disk{Name: "vda", Path: filepath.Join(dir, "a"), Format: Raw, Size: size}
	f, err := os.Create(d.Path)
	must(t, err)
	must(t, f.Truncate(size))
	for _, at := range []int64{HashBlock + 77, 3 * HashBlock, size - 10} {
		_, err = f.WriteAt([]byte("something"), at)
		must(t, err)
	}
	must(t, f.Close())
	c, err := OpenContent(t.Context(), d, Address{}, nil)
	must(t, err)
	defer c.Close()
	key := NewKey()
	h, err := newHasher(key)
	must(t, err)
	got, err := c.Sums(t.Context(), Part{Key: key, Length: size})
	must(t, err)
	all, err := os.ReadFile(d.Path)
	must(t, err)
	var want []byte
	for r := bytes.NewReader(all); r.Len() > 0; {
		b := make([]byte, min(HashBlock, r.Len()))
		_, err := io.ReadFull(r, b)
		must(t, err)
		want = h.add(want, b)
	}
	if !bytes.Equal(got, want) || len(got) != 6*SumSize {
		t.Errorf("hashes of %d bytes:\n%x\n%x", len(got), got, want)
	}
	part, err := c.Sums(t.Context(), Part{Key: key, Offset: 3 * HashBlock, Length: size - 3*HashBlock})
	must(t, err)
	if !bytes.Equal(part, want[3*SumSize:]) {
		t.Errorf("hashes of a part:\n%x\n%x", part, want[3*SumSize:])
	}
	for _, bad := range [][2]int64{{1, HashBlock}, {0, size + 1}, {-HashBlock, HashBlock}, {0, 0}} {
		if _, err := c.Sums(t.Context(), Part{Key: key, Offset: bad[0], Length: bad[1]}); err == nil {
			t.Errorf("hashes of %v", bad)
		}
	}
	for _, bad := range [][]byte{nil, key[:16]} {
		if _, err := c.Sums(t.Context(), Part{Key: bad, Length: size}); err == nil {
			t.Errorf("hashes with a key of %d bytes", len(bad))
		}
	}
	if other, err := c.Sums(t.Context(), Part{Key: NewKey(), Length: size}); err != nil || bytes.Equal(other[:SumSize], got[:SumSize]) {
		t.Errorf("another key gives the same hashes, %v", err)
	}
}

// TestImageSums: what qemu-img reads of an image in use has the hashes of its content.
func TestImageSums(t *testing.T) {
	const size = 37*HashBlock + 512
	im, dir, key := images(t), t.TempDir(), NewKey()
	raw := Disk{Name: "vda", Path: filepath.Join(dir, "raw"), Format: Raw, Size: size}
	content := make([]byte, size)
	for i := 3 * HashBlock; i < 9*HashBlock; i++ {
		content[i] = byte(rand.Uint32())
	}
	content[size-1] = 7
	must(t, os.WriteFile(raw.Path, content, 0o600))
	c, err := OpenContent(t.Context(), raw, Address{}, nil)
	must(t, err)
	defer c.Close()
	for _, option := range []string{"-q", "-c"} { // plain and compressed
		d := Disk{Name: "vda", Path: filepath.Join(dir, "qcow2"+option), Format: QCOW2, Size: size}
		_, err := im.run(t.Context(), "convert", option, "-f", Raw, "-O", QCOW2, raw.Path, d.Path)
		must(t, err)
		for _, part := range [][2]int64{{0, size}, {HashBlock, 4 * HashBlock}, {8 * HashBlock, size - 8*HashBlock}, {20 * HashBlock, HashBlock}} {
			p := Part{Key: key, Offset: part[0], Length: part[1]}
			want, err := c.Sums(t.Context(), p)
			must(t, err)
			got, err := im.Sums(t.Context(), d, p, dir)
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: hashes of %v differ", option, part)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "part-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestCrashedPrimary: the primary dies under load, the secondary goes on and
// writes, and takes the old primary back as its secondary. Only what differs
// travels, while the guest writes, and both are equal then.
func TestCrashedPrimary(t *testing.T) {
	ctx := testContext(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	a, b := newHost(t, "a", Raw, QCOW2), newHost(t, "b", QCOW2, Raw)
	a.startPrimary(ctx)
	a.io(ctx, 0, "write -P 0x11 0 48M")
	a.io(ctx, 1, "write -P 0x12 8M 48M")
	b.startStandby(ctx)
	a.protect(ctx, b, Options{})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 40 {
		a.scribbleOnce(ctx, rnd)
	}
	close(stop)
	wg.Wait()
	a.kill()
	b.promote(ctx)
	must(t, ReleaseOverlays(ctx, b.c, b.disks))
	for range 40 {
		b.scribbleOnce(ctx, rnd)
	}
	b.io(ctx, 0, "flush")
	b.io(ctx, 1, "flush")
	if _, ok, err := HasBitmap(ctx, b.c, b.disks); ok || err != nil {
		t.Fatalf("a former secondary has a bitmap: %v %v", ok, err)
	}
	differ := b.differing(ctx, a)
	a.startStandby(ctx)

	stop = make(chan struct{})
	b.scribble(ctx, rnd, stop, &wg)
	m := NewMirror(b.c, b.disks, a.to, Options{Mode: Checksum, Rescue: b.r, Scan: b.scan(a)})
	err := m.Sync(ctx)
	close(stop)
	wg.Wait()
	must(t, err)
	b.startCOLO(ctx, a, m)
	b.sameDisks(ctx, a)
	st := m.Stats()
	t.Logf("%d bytes differed before and %d by the hashes, %d were copied, %+v", differ, st.Differed, m.Copied(), st)
	if st.Compared != 128*mib || st.Differed < differ {
		t.Errorf("compared %d bytes, %d differ, of at least %d", st.Compared, st.Differed, differ)
	}
	b.io(ctx, 0, "write -P 0x33 1M 1M")
	b.checkpoint(ctx)
	b.sameDisks(ctx, a)
	a.kill()
	b.lostPeer(ctx)
	leftovers(t, b)
	if dirty, ok, err := HasBitmap(ctx, b.c, b.disks); !ok || err != nil || dirty < mib {
		t.Errorf("after a resync by checksum: a bitmap %v of %d bytes, %v", ok, dirty, err)
	}
}

// TestChecksumSendsWhatDiffers: without a guest that writes meanwhile no block
// more than those that differ is sent.
func TestChecksumSendsWhatDiffers(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw, QCOW2), newHost(t, "b", Raw, Raw)
	b.startPrimary(ctx)
	b.io(ctx, 0, "write -P 0x44 0 20M")
	b.io(ctx, 1, "write -P 0x45 0 64M")
	must(t, b.c.Quit(ctx))
	<-b.exited
	a.startPrimary(ctx)
	a.io(ctx, 0, "write -P 0x44 0 20M")
	a.io(ctx, 1, "write -P 0x45 0 64M")
	for i := range 30 {
		a.io(ctx, i%2, fmt.Sprintf("write -P %d %dk 4k", i, i*1024+60))
	}
	a.io(ctx, 0, "write -P 0x46 30M 5M")
	a.io(ctx, 0, "flush")
	a.io(ctx, 1, "flush")
	b.startStandby(ctx)
	differ := a.differing(ctx, b)
	r := newRelay(t, b.to)
	var reports, copying atomic.Int64
	m := NewMirror(a.c, a.disks, Address{Host: "127.0.0.1", Port: r.port}, Options{Mode: Checksum, Scan: a.scan(b), Rescue: a.r, OnProgress: func(p Progress) {
		reports.Add(1)
		if p.Phase == Copying {
			copying.Add(1)
		}
	}})
	must(t, m.Sync(ctx))
	if m.Stats().Differed != differ || m.Copied() != differ || r.sent.Load() > differ+differ/10 {
		t.Errorf("%d bytes differ, %d by the hashes; %d were copied and %d sent", differ, m.Stats().Differed, m.Copied(), r.sent.Load())
	}
	t.Logf("%d bytes differ, %d were sent", differ, r.sent.Load())
	if reports.Load() < 4 || copying.Load() == 0 {
		t.Errorf("%d reports, %d of copying", reports.Load(), copying.Load())
	}
	a.sameDisks(ctx, b)
	must(t, m.Abort(ctx))
	leftovers(t, a)
}

// TestScanGoesOn: a scan whose daemon dies goes on where it was, and finds what
// was written before it, meanwhile and after; a pause holds it without a stall.
func TestScanGoesOn(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw), newHost(t, "b", Raw)
	a.startPrimary(ctx)
	a.io(ctx, 0, "write -P 0x51 1M 1M")
	b.startStandby(ctx)
	var saved atomic.Int64
	first, cancel := context.WithCancel(ctx)
	s := a.scan(b)
	s.SaveEvery = 300 * time.Millisecond
	s.Save = func(_ string, offset int64) { saved.Store(offset) }
	peer := s.Peer
	s.Peer = func(ctx context.Context, p Part) ([]byte, error) {
		if p.Offset > 32*mib {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		return peer(ctx, p)
	}
	m := NewMirror(a.c, a.disks, b.to, Options{Mode: Checksum, Speed: 16 * mib, Scan: s, Rescue: a.r, OnProgress: func(p Progress) {
		if p.Done >= 28*mib { // more than one save is behind it
			cancel()
		}
	}})
	if err := m.Sync(first); err == nil {
		t.Fatal("a scan that was interrupted succeeded")
	}
	must(t, m.Abort(ctx))
	leftovers(t, a)
	from := saved.Load()
	if from == 0 || from >= 64*mib {
		t.Fatalf("saved %d", from)
	}
	a.io(ctx, 0, "write -P 0x52 2M 64k") // where it has been
	a.io(ctx, 0, "write -P 0x53 60M 64k")
	s = a.scan(b)
	s.From = map[string]int64{"vda": from}
	m = NewMirror(a.c, a.disks, b.to, Options{Mode: Checksum, Scan: s, Rescue: a.r, StallAfter: 500 * time.Millisecond})
	must(t, m.Tune(ctx, 0, true))
	done := make(chan error, 1)
	go func() { done <- m.Sync(ctx) }()
	select {
	case err := <-done:
		t.Fatalf("a resync that is paused ended: %v", err)
	case <-time.After(time.Second):
	}
	must(t, m.Tune(ctx, 0, false))
	must(t, <-done)
	if c := m.Stats().Compared; c != 64*mib-from {
		t.Errorf("compared %d bytes from %d on", c, from)
	}
	if m.Copied() > 2*mib {
		t.Errorf("copied %d bytes", m.Copied())
	}
	a.sameDisks(ctx, b)
	must(t, m.Abort(ctx))
	leftovers(t, a)
}

// TestScanStalls: a peer that sends no hashes is a stall, with that cause.
func TestScanStalls(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw), newHost(t, "b", Raw)
	a.startPrimary(ctx)
	b.startStandby(ctx)
	s := a.scan(b)
	s.Peer = func(ctx context.Context, _ Part) ([]byte, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	m := NewMirror(a.c, a.disks, b.to, Options{Mode: Checksum, Scan: s, Rescue: a.r, StallAfter: 300 * time.Millisecond})
	if err := m.Sync(ctx); !errors.Is(err, ErrStalled) || !errors.Is(err, errPeerSilent) {
		t.Errorf("%v", err)
	}
	must(t, m.Abort(ctx))
	leftovers(t, a)
}

// TestDurable: nothing is said about a disk that isn't there.
func TestDurable(t *testing.T) {
	d := Disk{Name: "vda", Path: filepath.Join(t.TempDir(), "a"), Format: Raw, Size: 512}
	if err := MakeDurable([]Disk{d}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	must(t, os.WriteFile(d.Path, []byte("x"), 0o600))
	must(t, MakeDurable([]Disk{d}))
}
