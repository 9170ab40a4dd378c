package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/internal/guest"
)

func TestParseCommandLine(t *testing.T) {
	line := guest.CommandLine(guest.Network{Addresses: []string{"10.0.0.1/8", "", "10.1.0.1/16"}, Gateway: "10.0.0.9"})
	got := parseCommandLine(line + " colo.ipx=1 other colo.gwx=2\n")
	want := network{addresses: map[int]string{0: "10.0.0.1/8", 2: "10.1.0.1/16"}, gateway: "10.0.0.9"}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(network{})); diff != "" {
		t.Error(diff)
	}
}
