package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coloctl/coloctl/internal/lab"
)

// daemons measures both nodes' daemons while they have one protected VM and nothing to do.
func daemons(ctx context.Context, dir string, assets *lab.Assets, rest time.Duration, say func(string, ...any)) (g Group, err error) {
	l, err := lab.New(ctx, lab.Options{Assets: assets, Dir: filepath.Join(dir, "rest"), Say: say})
	if err != nil {
		return Group{}, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.Boot(ctx, lab.NodeNames[0]); err != nil {
		return Group{}, err
	}
	if err := l.Protect(ctx); err != nil {
		return Group{}, err
	}
	select {
	case <-time.After(5 * time.Second): // what protecting it has left to write is written
	case <-ctx.Done():
		return Group{}, context.Cause(ctx)
	}
	say("both daemons at rest, for %s", rest)
	before, err := look(ctx, l)
	if err != nil {
		return Group{}, err
	}
	select {
	case <-time.After(rest):
	case <-ctx.Done():
		return Group{}, context.Cause(ctx)
	}
	after, err := look(ctx, l)
	if err != nil {
		return Group{}, err
	}
	g = Group{Name: "colod at rest with one protected VM", Left: "primary's", Right: "secondary's",
		Note: fmt.Sprintf("over %s; writes are bbolt's transactions in state.db", after[0].at.Sub(before[0].at).Round(time.Second))}
	figure := func(name, unit string, of func(a, b resting) float64) {
		x, y := of(before[0], after[0]), of(before[1], after[1])
		g.Rows = append(g.Rows, Row{Figure: name, Unit: unit, Left: &x, Right: &y}) // no ratio: neither is better
	}
	figure("CPU, of one core", "%", func(a, b resting) float64 { return 100 * (b.cpu - a.cpu).Seconds() / b.at.Sub(a.at).Seconds() })
	figure("resident memory", "MB", func(_, b resting) float64 { return float64(b.rss) / 1e6 })
	figure("of it not shared with files", "MB", func(_, b resting) float64 { return float64(b.anon) / 1e6 })
	figure("checkpoints", "", func(a, b resting) float64 { return float64(b.checkpoints - a.checkpoints) })
	figure("writes to the store", "", func(a, b resting) float64 { return float64(b.writes - a.writes) })
	return g, nil
}

// resting is a daemon at a moment.
type resting struct {
	at          time.Time
	cpu         time.Duration
	rss, anon   int64
	checkpoints uint64
	writes      uint64
}

func look(ctx context.Context, l *lab.Lab) ([2]resting, error) {
	var out [2]resting
	for i, name := range lab.NodeNames {
		n := l.Node(name)
		s, err := n.Status(ctx)
		if err != nil {
			return out, err
		}
		if !s.Verdict.Protected {
			return out, fmt.Errorf("%s: not protected: %s", name, s.Verdict.Reason)
		}
		out[i].checkpoints = s.Checkpoints.Count
		if out[i].writes, err = transactions(n.StateFile()); err != nil {
			return out, err
		}
		if err := out[i].process(n.DaemonPID()); err != nil {
			return out, err
		}
	}
	return out, nil
}

// process reads what the kernel counts.
func (r *resting) process(pid int) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return err
	}
	// After the command in brackets, which may hold anything: state is the first, utime and stime the 12th and 13th.
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) < 13 {
		return fmt.Errorf("%s/stat: %q", dir, text)
	}
	for _, s := range f[11:13] {
		ticks, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return err
		}
		r.cpu += time.Duration(ticks) * time.Second / 100 // USER_HZ, which is 100 wherever Go runs
	}
	r.at = time.Now()
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			r.rss = kb << 10
		case "RssAnon":
			r.anon = kb << 10
		}
	}
	return nil
}

// transactions is how many write transactions a store has had. The daemon has the file locked, so the newest of the two meta pages is read from the file itself.
func transactions(file string) (uint64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// bbolt: a page is as large as the system's when the file was made; a page's header has 16 bytes, the number of the transaction stands 48 after them.
	var newest uint64
	for page := range 2 {
		meta := make([]byte, 80)
		if _, err := f.ReadAt(meta, int64(page*os.Getpagesize())); err != nil {
			return 0, err
		}
		if magic := binary.NativeEndian.Uint32(meta[16:]); magic != 0xED0CDAED {
			return 0, fmt.Errorf("%s: page %d is no meta page of bbolt", file, page)
		}
		newest = max(newest, binary.NativeEndian.Uint64(meta[16+48:]))
	}
	return newest, nil
}
