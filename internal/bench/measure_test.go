package main

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/pairtest"
	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/netcompare/comparer"
)

// TestMeasure measures as little as possible of everything that needs a guest: each figure must come out, whatever it is.
func TestMeasure(t *testing.T) {
	if testing.Short() {
		t.Skip("boots six guests")
	}
	tools := assets(t)
	if !inLab(t) {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	o := &options{
		only: []string{"checkpoint", "protect", "requests", "disk"},
		scale: scale{turns: 1, switches: 1, checkpoints: 3, attaches: 1, guests: []machine{{256 << 20, false, 0}}, requests: 3, downloads: 1, download: 1e6,
			image: 8 << 20, reads: 1, bulks: 1, write: 1 << 20, flushes: 3},
	}
	found, err := measure(ctx, lab.Path(), tools, o, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	must(t, (&Report{Groups: slices.Concat(slices.Collect(maps.Values(found))...)}).WriteTable(&table))
	for line := range strings.Lines(table.String()) {
		if utf8.RuneCountInString(line) > 81 {
			t.Errorf("wider than 80 columns: %s", line)
		}
	}
	for _, part := range o.only {
		if len(found[part]) == 0 {
			t.Errorf("nothing of %s", part)
		}
		for _, g := range found[part] {
			for _, r := range g.Rows {
				alone := r.Figure == "checkpoints a request, all kinds" // has no left side
				if r.Right == nil || *r.Right < 0 || !alone && (r.Left == nil || *r.Left <= 0 || r.Ratio == nil) {
					t.Errorf("%s, %s: %v, %v, ratio %v", g.Name, r.Figure, r.Left, r.Right, r.Ratio)
				}
			}
		}
	}
}

func TestMain(m *testing.M) {
	comparer.Main()
	lab.Main()
	os.Exit(m.Run())
}

// inLab runs the calling test again in a lab's namespaces, which need no root, and returns false; in there it returns true.
func inLab(t *testing.T) bool {
	t.Helper()
	if lab.Inside() {
		return true
	}
	folder, err := lab.MakeFolder("")
	must(t, err)
	defer folder.Remove()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer out.Close()
	err = lab.Start(t.Context(), folder, lab.StartOptions{Args: []string{"-test.v", "-test.timeout=9m", "-test.run=^" + t.Name() + "$"}, Stdout: out, Stderr: out})
	text, readErr := os.ReadFile(out.Name())
	must(t, readErr)
	t.Logf("%s", text)
	if errors.Is(err, lab.ErrPrecondition) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	must(t, err)
	return false
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func assets(t *testing.T) *lab.Assets {
	t.Helper()
	env := qemutest.Find(t)
	return &lab.Assets{QEMU: []string{env.QEMU}, QEMUImg: []string{env.Img}, Accel: "tcg", Kernel: env.Kernel, Initrd: pairtest.Initrd(t, env.Modules)}
}

func TestFlags(t *testing.T) {
	o, err := parseFlags([]string{"-short", "-only", "qmp,protect", "-o", "json"})
	if err != nil || !o.json || o.scale.turns != short.turns || !slices.Equal(o.only, []string{"qmp", "protect"}) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"-o", "xml"}, {"-only", "everything"}, {"operand"}, {"-unknown"}} {
		if _, err := parseFlags(args); err == nil {
			t.Errorf("no error for %q", args)
		}
	}
}
