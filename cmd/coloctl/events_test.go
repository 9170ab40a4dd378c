package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEventKinds: --kind knows all kinds that the engine has.
func TestEventKinds(t *testing.T) {
	files, err := filepath.Glob("../../colo/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	kind := regexp.MustCompile(`[^a-zA-Z]Event\{[^}]*Kind: "([a-z-]+)"`)
	var found []string
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range kind.FindAllStringSubmatch(string(text), -1) {
			found = append(found, m[1])
		}
	}
	slices.Sort(found)
	if found = slices.Compact(found); !slices.Equal(found, eventKinds) {
		t.Errorf("in the engine: %q, known here: %q", found, eventKinds)
	}
}
