package heartbeat_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/colo/heartbeat/heartbeattest"
)

// TestNemesis breaks and mends a pair at random for a while, then leaves it alone and looks whether both sides believe what is
// true: a path is up exactly if it is whole, the peer lost exactly if nothing of it can arrive. And while one path was never touched nobody may ever be lost.
func TestNemesis(t *testing.T) {
	const paths = 3
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 9))
				n := heartbeattest.New(seed)
				sides := map[string]*side{"a": newSide(t, n, "a", paths, nil), "b": newSide(t, n, "b", paths, nil)}
				time.Sleep(time.Second)
				safe := seed%2 == 0 // path 0 stays whole and nobody is stopped
				var cut [paths][2]bool
				down := map[string]bool{}
				for range 40 {
					i, name := r.IntN(paths), []string{"a", "b"}[r.IntN(2)]
					if safe && i == 0 {
						i = 1
					}
					switch r.IntN(4) {
					case 0, 1: // one direction of a path
						q := heartbeattest.Quality{Cut: r.IntN(2) == 0, Delay: time.Duration(r.IntN(30)) * time.Millisecond}
						n.Set(host(i, name), host(i, other(name)), q)
						cut[i][name[0]-'a'] = q.Cut
					case 2: // the daemon ends, or begins
						if safe {
							break
						}
						if down[name] {
							sides[name].start()
						} else {
							sides[name].stop()
						}
						down[name] = !down[name]
					case 3: // the whole node sleeps
						if safe {
							break
						}
						freeze(n, paths, name, true)
						time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
						freeze(n, paths, name, false)
					}
					time.Sleep(time.Duration(r.IntN(800)) * time.Millisecond)
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				for name, s := range sides {
					if down[name] {
						continue
					}
					st := s.m.Status()
					anyWhole, anyComing := false, false
					for i := range paths {
						whole := !cut[i][0] && !cut[i][1] && !down[other(name)]
						anyWhole = anyWhole || whole
						anyComing = anyComing || (!cut[i][other(name)[0]-'a'] && !down[other(name)])
						if st.Paths[i].Up != whole {
							t.Errorf("%s: path %d up is %v, truth %v: %+v", name, i, st.Paths[i].Up, whole, st.Paths[i])
						}
					}
					// A path that only comes in counts if it was whole once in this run of both; either belief is right then.
					if anyWhole && st.State != heartbeat.Alive || !anyComing && st.State != heartbeat.Lost {
						t.Errorf("%s believes the peer %s; cut: %v, down: %v", name, st.State, cut, down)
					}
					if safe {
						for _, e := range s.told() {
							if e.Kind == heartbeat.PeerLost || e.Kind == heartbeat.PathDown && e.Path == "link0" {
								t.Errorf("%s: %v although link0 was never touched", name, e)
							}
						}
					}
				}
			})
		})
	}
}
