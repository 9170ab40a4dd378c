package lab

import (
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
)

func TestBreaches(t *testing.T) {
	ms := func(v ...int64) []int64 {
		for i := range v {
			v[i] *= int64(time.Millisecond)
		}
		return v
	}
	grant := func(at int64, generation uint64, members ...string) Grant {
		return Grant{At: at * int64(time.Millisecond), Generation: generation, Members: members}
	}
	both := grant(0, 1, "n1", "n2")
	tests := []struct {
		name   string
		n1, n2 []int64
		grants []Grant
		want   int
	}{
		{"silence", nil, nil, nil, 0},
		{"one speaks", ms(1, 2, 3), nil, []Grant{both}, 0},
		{"a switchover", ms(1, 2, 3), ms(4, 5, 6), []Grant{both}, 0},
		{"a failover", ms(1, 2, 3), ms(11, 12), []Grant{both, grant(10, 2, "n2")}, 0},
		{"there and back, seconds apart", ms(1, 2, 5000), ms(2000, 2001), []Grant{both}, 0},
		{"interleaved", ms(1, 3, 5), ms(4, 6), []Grant{both}, 2}, // 4 inside n1's, 5 inside n2's
		{"the loser speaks once more", ms(1, 15), ms(11, 12), []Grant{both, grant(10, 2, "n2")}, 1},
		{"the loser speaks before the winner's first word", ms(1, 15), ms(20, 30), []Grant{both, grant(10, 2, "n2")}, 1},
		{"the loser speaks and nobody else", ms(1, 15), nil, []Grant{both, grant(10, 2, "n2")}, 1},
		{"the loser wakes up much later", ms(1, 9000), ms(8990, 9010), []Grant{both, grant(10, 2, "n2")}, 1},
		{"the loser is a member again", ms(1, 9000), ms(11, 12), []Grant{both, grant(10, 2, "n2"), grant(8000, 3, "n1", "n2")}, 0},
		{"at the very instant of the grant", ms(10), nil, []Grant{both, grant(10, 2, "n2")}, 1},
		{"no grants known", ms(1, 3), ms(2), nil, 1},
	}
	for _, tt := range tests {
		if got := len(Breaches(map[string][]int64{"n1": tt.n1, "n2": tt.n2}, tt.grants)); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestGrantsAreRecordedOnce(t *testing.T) {
	var g Grants
	g.Add(time.Now(), arbiter.Record{VM: "a", Generation: 1, Members: []string{"n1", "n2"}})
	g.Add(time.Now(), arbiter.Record{VM: "a", Generation: 2, Members: []string{"n2"}})
	at := g.List()[1].At
	g.Add(time.Now(), arbiter.Record{VM: "a", Generation: 2, Members: []string{"n2"}}) // asking again
	g.Add(time.Now(), arbiter.Record{VM: "a", Generation: 1, Members: []string{"n1", "n2"}})
	list := g.List()
	if len(list) != 2 || list[1].At != at || list[1].Members[0] != "n2" {
		t.Errorf("got %v", list)
	}
}

// TestBreachesOfMany: of three nodes one may speak at a time, and one that was replaced may not at all.
func TestBreachesOfMany(t *testing.T) {
	at := func(ms ...int64) (out []int64) {
		for _, m := range ms {
			out = append(out, m*int64(time.Millisecond))
		}
		return out
	}
	grants := []Grant{{0, 2, []string{"n1", "n2"}}, {at(100)[0], 3, []string{"n1"}}, {at(200)[0], 4, []string{"n1", "n3"}}, {at(300)[0], 5, []string{"n3"}}}
	for name, c := range map[string]struct {
		frames map[string][]int64
		want   int
	}{
		"one after the other":            {map[string][]int64{"n1": at(10, 50, 150, 250), "n2": nil, "n3": at(350, 400)}, 0},
		"the replaced one speaks":        {map[string][]int64{"n1": at(10, 250), "n2": at(260), "n3": nil}, 1},
		"the first one after the third":  {map[string][]int64{"n1": at(10, 390), "n2": nil, "n3": at(350, 400)}, 1},
		"the third between two of n1's":  {map[string][]int64{"n1": at(210, 220), "n2": nil, "n3": at(215)}, 1},
		"the third before it is counted": {map[string][]int64{"n1": at(10), "n2": nil, "n3": at(150)}, 1},
	} {
		if n := len(Breaches(c.frames, grants)); n != c.want {
			t.Errorf("%s: %d, want %d", name, n, c.want)
		}
	}
}
