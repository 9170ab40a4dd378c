package main

import (
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

func TestConformance(t *testing.T) {
	dir := t.TempDir()
	arbitertest.Conformance(t, func(node string) arbiter.Arbiter { return folder{dir, node} }, "a VM/with: any id")
}

func TestIsLinearizable(t *testing.T) {
	for seed := range uint64(3) {
		dir := t.TempDir()
		run := arbitertest.Run{View: func(node string) arbiter.Arbiter { return folder{dir, node} }, Seed: seed, Calls: 20}
		if err := run.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		var out strings.Builder
		if err := run(t.Context(), dir, &out); err != nil {
			t.Fatal(err)
		}
		if strings.Count(out.String(), " has won\n") != 1 || strings.Count(out.String(), " has lost\n") != 1 {
			t.Errorf("want one winner and one loser:\n%s", out.String())
		}
	}
}
