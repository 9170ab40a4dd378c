package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/internal/guest/blob"
	"github.com/coloctl/coloctl/internal/guest/service"
)

// What a comparison by checksum keeps under way on each side, as package blockrepl does.
const (
	scanWindow   = 32 << 20
	scanInFlight = 3
)

// scans compares how fast a node hashes its half of a disk, as a resync by checksum does, with how fast cat reads the same file.
func (b *bed) scans(ctx context.Context, o scale) (g Group, err error) {
	g = Group{Name: fmt.Sprintf("reading an image of %d MiB", o.image>>20), Left: "cat", Right: "hashes", Note: fmt.Sprintf("medians of %d each, in turns", o.reads)}
	path := filepath.Join(b.dir, "scan.raw")
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	if err := writeImage(path, o.image); err != nil {
		return g, err
	}
	for _, from := range []struct {
		name string
		cold bool
	}{{"kept in memory, median", false}, {"from the disk, median", true}} {
		var cat, hashes []float64
		for range o.reads {
			for _, side := range []struct {
				into *[]float64
				read func(context.Context, string, int64) error
			}{{&cat, catImage}, {&hashes, hashImage}} {
				if err := warm(ctx, path, from.cold); err != nil {
					return g, err
				}
				begun := time.Now()
				if err := side.read(ctx, path, o.image); err != nil {
					return g, err
				}
				*side.into = append(*side.into, float64(o.image)/1e6/time.Since(begun).Seconds())
			}
		}
		b.say("scan, %s: cat %.0f MB/s, hashes %.0f MB/s", from.name, *quantile(0.5, cat), *quantile(0.5, hashes))
		g.Rows = append(g.Rows, row(from.name, "MB/s", quantile(0.5, cat), quantile(0.5, hashes)))
	}
	return g, nil
}

// writeImage makes a file without holes, and without blocks of zeroes.
func writeImage(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, blob.NewReader(size, 1))
	return errors.Join(err, f.Sync(), f.Close())
}

// warm puts the file into the kernel's page cache, or takes it out.
func warm(ctx context.Context, path string, cold bool) error {
	if !cold {
		return catImage(ctx, path, 0)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

func catImage(ctx context.Context, path string, _ int64) error {
	return exec.CommandContext(ctx, "cat", path).Run() // its output goes to /dev/null
}

// hashImage does what a node does for one side of a comparison.
func hashImage(ctx context.Context, path string, size int64) error {
	d := blockrepl.Disk{Name: "vda", Path: path, Format: blockrepl.Raw, Size: size}
	c, err := blockrepl.OpenContent(ctx, d, blockrepl.Address{}, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(scanInFlight)
	p := blockrepl.Part{Disk: d.Name, Key: blockrepl.NewKey()}
	for p.Offset = 0; p.Offset < size; p.Offset += scanWindow {
		window := p
		window.Length = min(scanWindow, size-window.Offset)
		g.Go(func() error {
			_, err := c.Sums(ctx, window)
			return err
		})
	}
	return g.Wait()
}

// written is what the guest's own disk feels like to it.
type written struct {
	throughput []float64 // MB/s
	flush      []float64 // ms each, by the guest's clock, which stands still at checkpoints
	mean       []float64 // ms each, by the client's clock
}

// disks compares what writing to its disk costs a guest alone and protected, in turns on the same guest.
func (b *bed) disks(ctx context.Context, o scale) (gs []Group, err error) {
	scan, err := b.scans(ctx, o)
	if err != nil {
		return nil, err
	}
	p, err := b.startPair(ctx, machine{memory: 256 << 20, second: secondSize})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	var alone, protected written
	for turn := range o.turns {
		if err := alone.measure(ctx, b, o, 2*turn); err != nil {
			return nil, fmt.Errorf("writes of a guest alone: %w", err)
		}
		if err := p.protect(ctx); err != nil {
			return nil, err
		}
		if err := protected.measure(ctx, b, o, 2*turn+1); err != nil {
			return nil, fmt.Errorf("writes of a protected guest: %w", err)
		}
		if err := p.unprotect(ctx); err != nil {
			return nil, err
		}
		b.say("writes: %.1f MB/s alone, %.1f MB/s protected; a flush %.2f ms alone, %.2f ms protected", *quantile(0.5, alone.throughput),
			*quantile(0.5, protected.throughput), *quantile(0.5, alone.flush), *quantile(0.5, protected.flush))
	}
	throughput := Group{Name: fmt.Sprintf("guest writes %d MiB, then flushes", o.write>>20), Left: "alone", Right: "protected",
		Note: fmt.Sprintf("medians of %d each", len(alone.throughput)), Rows: rows("throughput,", "MB/s", alone.throughput, protected.throughput, 0.5)}
	flush := Group{Name: "guest writes 4 KiB and flushes (fsync)", Left: "alone", Right: "protected",
		Note: fmt.Sprintf("%d each; the mean by the client's clock, with pauses", len(alone.flush)),
		Rows: append(rows("", "ms", alone.flush, protected.flush, 0.5, 0.9, 0.99), row("mean", "ms", mean(alone.mean), mean(protected.mean)))}
	return []Group{scan, throughput, flush}, nil
}

// secondSize is room for what is written in one turn.
const secondSize = 256 << 20

func mean(samples []float64) *float64 {
	if len(samples) == 0 {
		return nil
	}
	sum := 0.0
	for _, s := range samples {
		sum += s
	}
	sum /= float64(len(samples))
	return &sum
}

func (w *written) measure(ctx context.Context, b *bed, o scale, seed int) error {
	via := &http.Transport{DialContext: b.dial}
	defer via.CloseIdleConnections()
	client := &http.Client{Transport: via, Timeout: 5 * time.Minute}
	for i := range o.bulks {
		begun := time.Now()
		if err := post(ctx, client, fmt.Sprintf("/raw?offset=0&size=%d&seed=%d", o.write, 1000*seed+i), nil); err != nil {
			return err
		}
		w.throughput = append(w.throughput, float64(o.write)/1e6/time.Since(begun).Seconds())
	}
	begun := time.Now()
	var times service.FlushTimes
	if err := post(ctx, client, fmt.Sprintf("/flush?size=4096&times=%d&seed=%d", o.flushes, seed), &times); err != nil {
		return err
	}
	took := time.Since(begun)
	if len(times.Micros) != o.flushes {
		return fmt.Errorf("the guest tells of %d flushes instead of %d", len(times.Micros), o.flushes)
	}
	for _, us := range times.Micros {
		w.flush = append(w.flush, float64(us)/1000)
	}
	w.mean = append(w.mean, millis(took)/float64(o.flushes))
	return nil
}

// post asks the guest to do something, and reads what it tells of it.
func post(ctx context.Context, client *http.Client, path string, into any) error {
	var body bytes.Buffer
	if err := ask(ctx, client, http.MethodPost, path, &body); err != nil || into == nil {
		return err
	}
	return json.Unmarshal(body.Bytes(), into)
}
