package colo

import (
	"testing"
	"time"
)

func TestDistance(t *testing.T) {
	link := func(name string, up bool, rtt time.Duration) LinkStatus {
		return LinkStatus{Name: name, Up: up, RTTMin: rtt}
	}
	for name, tt := range map[string]struct {
		most  time.Duration
		links []LinkStatus
		far   bool
	}{
		"no limit":                     {0, []LinkStatus{link("a", true, time.Hour)}, false},
		"near":                         {5 * time.Millisecond, []LinkStatus{link("a", true, 5*time.Millisecond)}, false},
		"far":                          {5 * time.Millisecond, []LinkStatus{link("a", true, 6*time.Millisecond)}, true},
		"one of two is near":           {5 * time.Millisecond, []LinkStatus{link("a", true, 60*time.Millisecond), link("b", true, time.Millisecond)}, false},
		"the near one is down":         {5 * time.Millisecond, []LinkStatus{link("a", true, 60*time.Millisecond), link("b", false, time.Millisecond)}, true},
		"nothing was measured":         {5 * time.Millisecond, []LinkStatus{link("a", true, 0)}, false},
		"all are down, others say so":  {5 * time.Millisecond, []LinkStatus{link("a", false, time.Hour)}, false},
		"no link of which it is known": {5 * time.Millisecond, nil, false},
	} {
		c := NodeConfig{MaxLinkRTT: tt.most}
		for i := range tt.links {
			tt.links[i].Far = c.far(tt.links[i].RTTMin)
		}
		if l, far := (PeerStatus{Links: tt.links}).TooFar(); far != tt.far || far && l.Name != "a" {
			t.Errorf("%s: %v of %q", name, far, l.Name)
		}
	}
}
