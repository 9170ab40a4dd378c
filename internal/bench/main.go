// Command bench measures what protection costs and what this project's ways of doing things save, side by side in one run, and prints one
// table:
//
//   - the pause at a checkpoint, with quickack routes and without;
//   - the pause when a running guest is protected, against the recipe of QEMU's documentation;
//   - the QMP client, against go-qemu's;
//   - what a client of the guest feels, alone and protected;
//   - how fast images are compared by checksum, against cat; and what writing to its disk costs a guest, alone and protected;
//   - what the daemons cost while nothing happens.
//
// Figures depend on the machine and on what else it does; what is compared is measured in turns, so the ratios are steadier. Nothing here
// fails because something was slow. docs/performance.md says how each figure is made.
//
// It runs in a lab's namespaces, as root or without, and leaves nothing behind.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/netcompare/comparer"
)

func main() {
	comparer.Main()
	lab.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	var err error
	if lab.Inside() {
		err = inside(ctx, os.Args[1:])
	} else {
		err = outside(ctx, os.Args[1:])
	}
	var exit *lab.ExitError
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	if !errors.As(err, &exit) { // else the process inside has said it already
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(1)
}

// scale says how much is measured.
type scale struct {
	turns       int // alone and protected
	switches    int // of the quickack routes, to off and to on
	checkpoints int // after each switch
	attaches    int
	guests      []machine
	requests    int // of each kind in a turn
	downloads   int // in a turn
	download    int64
	benchTime   string // of the QMP clients, as for go test
	rest        time.Duration
	image       int64 // that is hashed
	reads       int
	bulks       int   // in a turn
	write       int64 // each
	flushes     int   // in a turn
}

var (
	full = scale{turns: 3, switches: 12, checkpoints: 20, attaches: 3, guests: []machine{{256 << 20, true, 0}, {1 << 30, true, 0}},
		requests: 200, downloads: 3, download: 32e6, benchTime: "2s", rest: time.Minute,
		image: 1 << 30, reads: 9, bulks: 3, write: 64 << 20, flushes: 200}
	short = scale{turns: 1, switches: 2, checkpoints: 10, attaches: 1, guests: []machine{{256 << 20, true, 0}}, requests: 20, downloads: 1, download: 4e6, benchTime: "200ms", rest: 30 * time.Second,
		image: 256 << 20, reads: 3, bulks: 1, write: 16 << 20, flushes: 50}
)

// parts are what can be measured, in the order of the table.
var parts = []string{"checkpoint", "protect", "qmp", "requests", "disk", "rest"}

type options struct {
	only  []string
	scale scale
	json  bool
}

func parseFlags(args []string) (*options, error) {
	o := &options{scale: full, only: parts}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	output := f.String("o", "table", "`format`: table or json")
	only := f.String("only", strings.Join(parts, ","), "`list` of what is measured")
	quick := f.Bool("short", false, "measure little: to see that it works")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if *quick {
		o.scale = short
	}
	o.json = *output == "json"
	if !o.json && *output != "table" {
		return nil, fmt.Errorf("-o %s: expected table or json", *output)
	}
	o.only = strings.Split(*only, ",")
	for _, p := range o.only {
		if !slices.Contains(parts, p) {
			return nil, fmt.Errorf("-only %s: expected some of %s", p, strings.Join(parts, ","))
		}
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return o, nil
}

// resultName is the file in the lab's folder in which the process inside hands its groups over.
const resultName = "groups.json"

// outside fetches what is needed, measures the QMP clients, starts the same program in a lab's namespaces for the rest, and prints the report.
func outside(ctx context.Context, args []string) (err error) {
	o, err := parseFlags(args)
	if err != nil {
		return err
	}
	assets, err := lab.PrepareAssets(ctx, os.Stderr)
	if err != nil {
		return err
	}
	if slices.Contains(o.only, "rest") {
		if err := assets.FindDaemon(ctx, lab.Options{Arbiter: config.ArbiterWitness}, nil); err != nil {
			return err
		}
	}
	begun := time.Now()
	r := &Report{Time: begun.UTC().Truncate(time.Second), QEMU: assets.Version, Accel: assets.Accel, CPUs: runtime.NumCPU()}
	r.Load[0] = loadAverage()
	var qmpResult []Group
	if slices.Contains(o.only, "qmp") {
		if qmpResult, err = qmpClients(ctx, assets.QEMU[0], o.scale.benchTime); err != nil {
			return err
		}
	}
	found := map[string][]Group{}
	if len(o.only) > 1 || qmpResult == nil {
		// What was measured before something failed is worth showing.
		if found, err = runInLab(ctx, assets, args); len(found) == 0 && err != nil {
			return err
		}
	}
	found["qmp"] = qmpResult
	for _, p := range parts {
		r.Groups = append(r.Groups, found[p]...)
	}
	r.Load[1], r.Seconds = loadAverage(), time.Since(begun).Seconds()
	write := r.WriteTable
	if o.json {
		write = r.WriteJSON
	}
	return errors.Join(err, write(os.Stdout))
}

func runInLab(ctx context.Context, assets *lab.Assets, args []string) (found map[string][]Group, err error) {
	folder, err := lab.MakeFolder("")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, folder.Remove()) }()
	env, err := assets.Env()
	if err != nil {
		return nil, err
	}
	err = lab.Start(ctx, folder, lab.StartOptions{Args: args, Env: []string{env}, Stdout: os.Stderr, Stderr: os.Stderr})
	found = map[string][]Group{}
	text, readErr := os.ReadFile(filepath.Join(folder.Path, resultName))
	if readErr == nil {
		readErr = json.Unmarshal(text, &found)
	}
	if err == nil {
		err = readErr // else it is no wonder
	}
	return found, err
}

// inside measures in the lab's namespaces.
func inside(ctx context.Context, args []string) error {
	o, err := parseFlags(args)
	if err != nil {
		return err
	}
	assets, err := lab.InheritedAssets()
	if err != nil {
		return err
	}
	found, err := measure(ctx, lab.Path(), assets, o, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		err = &lab.ExitError{Code: 1}
	}
	text, marshalErr := json.Marshal(found)
	if marshalErr != nil {
		return marshalErr
	}
	return errors.Join(err, os.WriteFile(lab.Path(resultName), text, 0o600))
}

// measure does what the options say, but for the QMP clients. After an error it returns what it has. dir must have a short path: it holds unix sockets.
func measure(ctx context.Context, dir string, assets *lab.Assets, o *options, progress io.Writer) (found map[string][]Group, err error) {
	begun := time.Now()
	b, err := newBed(dir, assets, func(format string, args ...any) {
		fmt.Fprintf(progress, "%6.1f s  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
	})
	if err != nil {
		return nil, err
	}
	closeBed := sync.OnceValue(b.Close)
	defer func() { err = errors.Join(err, closeBed()) }()
	found = map[string][]Group{}
	for _, p := range o.only {
		var groups []Group
		switch p {
		case "rest": // the last: it has networks of its own, of the same names
			if err = closeBed(); err == nil {
				var g Group
				g, err = daemons(ctx, dir, assets, o.scale.rest, b.say)
				groups = []Group{g}
			}
		case "checkpoint":
			var g Group
			g, err = b.checkpoints(ctx, o.scale)
			groups = []Group{g}
		case "protect":
			groups, err = b.protection(ctx, o.scale)
		case "requests":
			groups, err = b.requests(ctx, o.scale)
		case "disk":
			groups, err = b.disks(ctx, o.scale)
		}
		if err != nil {
			return found, fmt.Errorf("%s: %w", p, err)
		}
		found[p] = groups
	}
	return found, nil
}

// loadAverage is the machine's over a minute, or nothing.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
