package config

import (
	"strings"
	"testing"
)

// TestWitnessApart: a witness on a node would die with it.
func TestWitnessApart(t *testing.T) {
	c := &Config{
		Links: []Link{{Name: "link0", Address: "10.99.0.1"}}, API: API{Listen: []string{"192.0.2.11:7789"}},
		Peers: []Peer{{Name: "n2", API: []string{"192.0.2.12:7789", "n2.example:7789"}, Links: []Link{{Name: "link0", Address: "10.99.0.2"}}}},
	}
	for address, apart := range map[string]bool{
		"192.0.2.20:7790": true, "w1.example:7790": true,
		"127.0.0.1:7790": false, "10.99.0.1:7790": false, "192.0.2.11:7790": false, "192.0.2.12:7790": false, "n2.example:7790": false, "10.99.0.2:7790": false, "nothing": false,
	} {
		err := c.apart(address)
		if (err == nil) != apart || err != nil && address != "nothing" && !strings.Contains(err.Error(), "it would die with the node") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
