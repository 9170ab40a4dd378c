package blockrepl

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coloctl/coloctl/qmp"
)

// Sums asks the peer for the hashes of its half of a disk, as [Content.Sums]
// makes them. The peer's half must not be written by others meanwhile, and what
// it hashes must be durable there ([MakeDurable]).
type Sums func(ctx context.Context, p Part) ([]byte, error)

// Scan is what a sync in mode Checksum needs besides.
type Scan struct {
	Peer Sums

	// Socket is the path of a unix socket that this QEMU may listen on meanwhile.
	Socket string

	// From says, by disk, how much an earlier scan has compared already. It
	// counts only while the bitmaps that it began are there ([HasBitmap]) and nobody
	// else has written to the peer's halves since. Empty begins anew.
	From map[string]int64

	// Save, if set, is called when all that differs up to an offset of a disk is
	// on record in this QEMU, so that a later scan may begin there. It is called from
	// several goroutines.
	Save func(disk string, offset int64)

	// SaveEvery is how much time a crash of the daemon costs at most; 2 s if 0.
	SaveEvery time.Duration
}

// window is how much both sides hash in one go. A limited scan has smaller
// ones, so that its reads come evenly.
const (
	maxWindow = 32 << 20
	minWindow = 1 << 20
	// inFlight windows of one disk are compared at once: while one's hashes
	// travel both sides read the next.
	inFlight         = 3
	defaultSaveEvery = 2 * time.Second
)

// scratchBitmap is on scratch-D, a disk of the same size without content. There
// is no command to set bits of a bitmap: they are set by writing to the scratch
// disk and then merged into the bitmap that counts.
const scratchBitmap = "colo-scratch"

func (d Disk) scratch() string       { return "scrtch-" + d.Name }
func (d Disk) scratchExport() string { return "expscr-" + d.Name }
func (d Disk) readExport() string    { return "exprd-" + d.Name }

// scan compares both halves of all disks while the guest writes. When it
// returns nil, syncBitmap has all that may differ: what the hashes say, and all that
// was written since before the first of them.
func (m *Mirror) scan(ctx context.Context) (err error) {
	s := m.o.Scan
	if s == nil || s.Peer == nil || s.Socket == "" {
		return errors.New("blockrepl: a sync by checksum needs Options.Scan")
	}
	left := false
	for _, d := range m.disks {
		left = left || s.From[d.Name] < d.Size
	}
	if !left {
		return nil
	}
	if err := m.openScan(ctx); err != nil {
		return errors.Join(err, closeScan(context.WithoutCancel(ctx), m.c, m.disks))
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
		defer cancel()
		err = errors.Join(err, closeScan(cctx, m.c, m.disks))
	}()
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range m.disks {
		if from := s.From[d.Name]; from < d.Size {
			g.Go(func() error { return m.scanDisk(ctx, d, from) })
		}
	}
	return g.Wait()
}

// openScan makes the scratch disks and exports, on a unix socket, them and what
// can only be read through QEMU.
func (m *Mirror) openScan(ctx context.Context) error {
	if err := serveUnix(ctx, m.c, m.disks, m.o.Scan.Socket); err != nil {
		return err
	}
	for _, d := range m.disks {
		if err := addScratch(ctx, m.c, d); err != nil {
			return err
		}
		if d.Format == Raw {
			continue
		}
		if err := m.c.BlockExportAdd(ctx, qmp.BlockExport{Type: "nbd", ID: d.readExport(), NodeName: d.parent(), Name: d.parent()}); err != nil {
			return err
		}
	}
	return nil
}

// closeScan removes what openScan made, as far as it is there.
func closeScan(ctx context.Context, c *qmp.Client, disks []Disk) error {
	exports, err := c.QueryBlockExports(ctx)
	if err != nil {
		return err
	}
	ours := map[string]bool{}
	for _, d := range disks {
		ours[d.scratchExport()], ours[d.readExport()] = true, true
	}
	found := false
	for _, e := range exports {
		if ours[e.ID] {
			found = true
			if err := c.BlockExportDel(ctx, e.ID, "hard"); err != nil && !refused(err) {
				return err
			}
		}
	}
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	for _, d := range disks {
		found = found || g.has(d.scratch())
	}
	if !found {
		return nil
	}
	if err := c.NBDServerStop(ctx); err != nil && !refused(err) {
		return err
	}
	var errs []error
	for _, d := range disks {
		if g.has(d.scratch()) {
			errs = append(errs, c.BlockdevDel(ctx, d.scratch()))
		}
	}
	return errors.Join(errs...)
}

func (m *Mirror) dialScan(ctx context.Context, export string) (*nbdClient, error) {
	return dialNBD(ctx, new(net.Dialer).DialContext, "unix", m.o.Scan.Socket, export)
}

// diskScan is the comparison of one disk.
type diskScan struct {
	m       *Mirror
	d       Disk
	key     []byte
	content *Content
	scratch *nbdClient

	differ []span // on its way to the bitmap
	next   int64  // all before it was compared
	saved  time.Time
	meter  meter
}

type span struct{ offset, length int64 }

func (m *Mirror) scanDisk(ctx context.Context, d Disk, from int64) (err error) {
	s := &diskScan{m: m, d: d, key: NewKey(), next: from, saved: time.Now(), meter: meter{sampled: time.Now(), sample: from}}
	if d.Format == Raw {
		s.content, err = openFile(d)
	} else {
		var n *nbdClient
		if n, err = m.dialScan(ctx, d.parent()); err == nil {
			s.content, err = newContent(d, n)
		}
	}
	if err != nil {
		return err
	}
	defer s.content.Close()
	if s.scratch, err = m.dialScan(ctx, d.scratch()); err != nil {
		return err
	}
	defer s.scratch.Close()
	if err := s.run(ctx); err != nil {
		return fmt.Errorf("compare disk %s: %w", d.Name, err)
	}
	return nil
}

// windowResult is both sides' hashes of a window, or why there are none.
type windowResult struct {
	offset, length int64
	here, there    []byte
	err            error
}

// run keeps a few windows under way and takes them in order.
func (s *diskScan) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var flying []chan windowResult
	pace := pacer{at: time.Now()}
	for begin := s.next; begin < s.d.Size || len(flying) > 0; {
		for len(flying) < inFlight && begin < s.d.Size {
			length := min(s.m.window(), s.d.Size-begin)
			if err := s.m.admit(ctx, &pace, length); err != nil {
				return err
			}
			ch := make(chan windowResult, 1)
			flying = append(flying, ch)
			r := windowResult{offset: begin, length: length}
			wg.Go(func() { ch <- s.compare(ctx, r) })
			begin += length
		}
		r := <-flying[0] // ends with ctx
		flying = flying[1:]
		if r.err != nil {
			return r.err
		}
		if err := s.take(ctx, r); err != nil {
			return err
		}
	}
	return s.flush(ctx)
}

// compare hashes one window on both sides at once.
func (s *diskScan) compare(ctx context.Context, r windowResult) windowResult {
	g, ctx := errgroup.WithContext(ctx)
	part := Part{Disk: s.d.Name, Key: s.key, Offset: r.offset, Length: r.length}
	g.Go(func() (err error) { r.here, err = s.content.Sums(ctx, part); return err })
	g.Go(func() (err error) {
		// A peer that says nothing is a stall like one that doesn't take data.
		limit := s.m.stallAfter()
		pctx, cancel := context.WithTimeoutCause(ctx, limit, errPeerSilent)
		defer cancel()
		r.there, err = s.m.o.Scan.Peer(pctx, part)
		if err != nil && errors.Is(context.Cause(pctx), errPeerSilent) {
			err = &StallError{Disk: s.d.Name, For: limit, Done: r.offset, Total: s.d.Size, Cause: err}
		}
		return err
	})
	if r.err = g.Wait(); r.err == nil && (len(r.here) != len(r.there) || len(r.here) == 0) {
		r.err = fmt.Errorf("blockrepl: the peer sent %d bytes of hashes instead of %d", len(r.there), len(r.here))
	}
	return r
}

var errPeerSilent = errors.New("the peer's node sends no hashes")

// take notes what differs in a window.
func (s *diskScan) take(ctx context.Context, r windowResult) error {
	var differ int64
	for i := 0; i < len(r.here); i += SumSize {
		if bytes.Equal(r.here[i:i+SumSize], r.there[i:i+SumSize]) {
			continue
		}
		at := r.offset + int64(i/SumSize)*HashBlock
		length := min(HashBlock, s.d.Size-at)
		differ += length
		if n := len(s.differ); n > 0 && s.differ[n-1].offset+s.differ[n-1].length == at {
			s.differ[n-1].length += length
			continue
		}
		s.differ = append(s.differ, span{at, length})
	}
	s.next = r.offset + r.length
	s.m.compared(r.length, differ)
	s.meter.update(s.next)
	if report := s.m.o.OnProgress; report != nil {
		s.m.report.Lock()
		report(Progress{Disk: s.d.Name, Phase: Comparing, Done: s.next, Total: s.d.Size, Rate: s.meter.rate, ETA: s.meter.eta(s.d.Size - s.next)})
		s.m.report.Unlock()
	}
	if time.Since(s.saved) >= cmp.Or(s.m.o.Scan.SaveEvery, defaultSaveEvery) {
		return s.flush(ctx)
	}
	return nil
}

// flush puts what differs on record.
func (s *diskScan) flush(ctx context.Context) error {
	for _, r := range s.differ {
		if err := s.scratch.zero(ctx, r.offset, r.length); err != nil {
			return err
		}
	}
	if len(s.differ) > 0 {
		if err := transaction(ctx, s.m.c, []Disk{s.d}, scratchActions); err != nil {
			return err
		}
	}
	s.differ, s.saved = nil, time.Now()
	if s.m.o.Scan.Save != nil {
		s.m.o.Scan.Save(s.d.Name, s.next)
	}
	return nil
}

// scratchActions move what was set in the scratch bitmap to the one that counts.
func scratchActions(d Disk) []action {
	type bitmap struct {
		Node string `json:"node"`
		Name string `json:"name"`
	}
	return []action{
		{"block-dirty-bitmap-merge", struct {
			Node    string   `json:"node"`
			Target  string   `json:"target"`
			Bitmaps []bitmap `json:"bitmaps"`
		}{d.parent(), syncBitmap, []bitmap{{d.scratch(), scratchBitmap}}}},
		{"block-dirty-bitmap-clear", bitmap{d.scratch(), scratchBitmap}},
	}
}

func (m *Mirror) window() int64 {
	speed := m.currentSpeed()
	if speed == 0 {
		return maxWindow
	}
	return min(maxWindow, max(minWindow, speed/4/HashBlock*HashBlock))
}

// pacer spreads the windows of one disk over time.
type pacer struct{ at time.Time }

// fresh makes time that was not used no credit.
func (p *pacer) fresh(now time.Time) {
	if p.at.Before(now.Add(-time.Second)) {
		p.at = now
	}
}

// takes is how long length bytes take at speed bytes a second.
func takes(length, speed int64) time.Duration {
	return time.Duration(float64(length) / float64(speed) * float64(time.Second))
}

// take waits until length bytes may be copied, at speed bytes a second; 0 is no limit.
func (p *pacer) take(ctx context.Context, length, speed int64) error {
	if speed <= 0 || length == 0 {
		return nil
	}
	now := time.Now()
	p.fresh(now)
	wait := p.at.Sub(now)
	p.at = p.at.Add(takes(length, speed))
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// admit waits until the next window may begin: while the resync is paused, and
// for as long as the limit says. A limit that is changed counts from the next look
// on.
func (m *Mirror) admit(ctx context.Context, p *pacer, length int64) error {
	for {
		m.mu.Lock()
		paused, changed, speed := m.paused, m.tuned, m.speed
		m.mu.Unlock()
		now := time.Now()
		p.fresh(now)
		wait := time.Duration(0)
		if speed > 0 {
			wait = p.at.Sub(now)
		}
		if !paused && wait <= 0 {
			p.at = now
			if speed > 0 {
				p.at = now.Add(takes(length, speed))
			}
			return context.Cause(ctx)
		}
		var timer <-chan time.Time
		var t *time.Timer
		if !paused {
			t = time.NewTimer(wait)
			timer = t.C
		}
		select {
		case <-timer:
		case <-changed:
			p.at = now
		case <-ctx.Done():
		}
		if t != nil {
			t.Stop()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// compared counts what a scan has found.
func (m *Mirror) compared(bytes, differ int64) {
	m.mu.Lock()
	m.stats.Compared += bytes
	m.stats.Differed += differ
	m.mu.Unlock()
}
