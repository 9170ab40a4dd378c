package main

import "testing"

const goTest = `goos: linux
pkg: github.com/coloctl/coloctl/qmp
BenchmarkRoundTrip/client=ours-2         	     200	    100000 ns/op	     10000 roundtrips/s	     800 B/op	      14 allocs/op
BenchmarkRoundTrip/client=ours-as-monitor-2  	 200	    110000 ns/op	      9000 roundtrips/s	     900 B/op	      18 allocs/op
BenchmarkRoundTrip/client=go-qemu-2      	     200	    120000 ns/op	      8000 roundtrips/s	    3000 B/op	      30 allocs/op
BenchmarkRoundTrip/client=go-qemu-same-bytes-2   200	    150000 ns/op	      6000 roundtrips/s	    3200 B/op	      28 allocs/op
BenchmarkClient/client=ours   	     200	     20000 ns/op	     50000 roundtrips/s	     800 B/op	      14 allocs/op
BenchmarkClient/client=go-qemu   	     200	     30000 ns/op	     33000 roundtrips/s	    3000 B/op	      30 allocs/op
PASS
`

func TestQMPGroups(t *testing.T) {
	groups, err := qmpGroups([]byte(goTest))
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) != 2 {
		t.Fatalf("%d groups", len(groups))
	}
	for _, c := range []struct {
		group, row         int
		left, right, ratio float64
	}{{0, 0, 100, 150, 1.5}, {0, 3, 14, 28, 2}, {1, 0, 20, 30, 1.5}, {1, 1, 50000, 1e9 / 30000.0, 1e5 / 3 / 50000}} {
		r := groups[c.group].Rows[c.row]
		if d := *r.Ratio - c.ratio; *r.Left != c.left || *r.Right != c.right || d > 1e-9 || d < -1e-9 {
			t.Errorf("%s, %s: %g, %g, ratio %g; want %g, %g, %g", groups[c.group].Name, r.Figure, *r.Left, *r.Right, *r.Ratio, c.left, c.right, c.ratio)
		}
	}
	if _, err := qmpGroups([]byte("PASS\n")); err == nil {
		t.Error("no error for an output without results")
	}
}
