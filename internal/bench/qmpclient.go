package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/tools/benchmark/parse"
)

// qmpClients compares the QMP client with go-qemu's by the benchmarks of package qmp, which it runs with the go command.
func qmpClients(ctx context.Context, qemu, benchTime string) ([]Group, error) {
	test := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench=.", "-benchtime="+benchTime, "github.com/coloctl/coloctl/qmp")
	test.Env = append(os.Environ(), "COLOCTL_QEMU="+qemu)
	var out, errOut bytes.Buffer
	test.Stdout, test.Stderr = &out, &errOut
	if err := test.Run(); err != nil {
		return nil, fmt.Errorf("benchmarks of package qmp: %w\n%s%s", err, out.Bytes(), errOut.Bytes())
	}
	return qmpGroups(out.Bytes())
}

// qmpGroups reads the output of go test.
func qmpGroups(out []byte) ([]Group, error) {
	found := map[string]*parse.Benchmark{}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		b, err := parse.ParseLine(s.Text())
		if err != nil {
			continue // no result
		}
		name := b.Name
		if i := strings.LastIndex(name, "-"); i > 0 && strings.Trim(name[i+1:], "0123456789") == "" {
			name = name[:i] // GOMAXPROCS
		}
		found[name] = b
	}
	var groups []Group
	for _, w := range []struct{ bench, name, note string }{
		{"BenchmarkRoundTrip", "QMP, query-status of a real QEMU", "each sends the same number of bytes, which QEMU reads one by one"},
		{"BenchmarkClient", "QMP, a peer that answers at once", ""},
	} {
		theirs := "go-qemu"
		if w.note != "" {
			theirs = "go-qemu-same-bytes"
		}
		l, r := found[w.bench+"/client=ours"], found[w.bench+"/client="+theirs]
		if l == nil || r == nil {
			return nil, fmt.Errorf("go test printed no result of %s:\n%s", w.bench, out)
		}
		value := func(v float64) *float64 { return &v }
		groups = append(groups, Group{Name: w.name, Note: w.note, Left: "ours", Right: "go-qemu", Rows: []Row{
			row("round trip", "µs", value(l.NsPerOp/1e3), value(r.NsPerOp/1e3)),
			row("round trips a second", "", value(1e9/l.NsPerOp), value(1e9/r.NsPerOp)),
			row("allocated, each", "B", value(float64(l.AllocedBytesPerOp)), value(float64(r.AllocedBytesPerOp))),
			row("allocations, each", "", value(float64(l.AllocsPerOp)), value(float64(r.AllocsPerOp))),
		}})
	}
	return groups, nil
}
