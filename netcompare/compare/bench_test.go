package compare

import (
	"testing"
)

// null releases to nowhere.
type null struct{ n int }

func (o *null) Release(uint8, []byte, *Chunk) { o.n++ }
func (o *null) Checkpoint(Reason)             {}

// BenchmarkStream compares a download whose segments the copies cut differently, in packets of both copies.
func BenchmarkStream(b *testing.B) {
	for name, size := range map[string]int{"1448": 1448, "65160": 65160} {
		b.Run(name, func(b *testing.B) {
			pool, out := new(Pool), new(null)
			e := New(Config{}, out, pool)
			e.Stopped(1)
			e.Resumed(2)
			body := string(make([]byte, size))
			pri, sec := tcp4(1, 1, flagACK, body).frame(), tcp4(1, 1, flagACK, body[:size/2]).frame()
			c := pool.Get()
			const seqAt = 4 + 14 + 20 + 4
			put := func(frame []byte, at int, seq uint32) Frame {
				n := copy(c.Data[at:], frame)
				for i := range 4 {
					c.Data[at+seqAt+i] = byte(seq >> (24 - 8*i))
				}
				return Frame{All: c.Data[at : at+n], Head: 4, Chunk: c}
			}
			b.SetBytes(int64(size) * 2)
			b.ReportAllocs()
			seq := uint32(1)
			for b.Loop() {
				e.Primary(3, put(pri, 0, seq))
				e.Secondary(3, put(sec, len(pri), seq))
				e.Secondary(3, put(sec, len(pri)+len(sec), seq+uint32(size/2)))
				seq += uint32(size)
			}
			if out.n != b.N {
				b.Fatalf("%d of %d left", out.n, b.N)
			}
			b.ReportMetric(3*float64(b.N)/b.Elapsed().Seconds(), "packets/s")
		})
	}
}

// BenchmarkDatagrams compares datagrams of a thousand flows.
func BenchmarkDatagrams(b *testing.B) {
	pool, out := new(Pool), new(null)
	e := New(Config{}, out, pool)
	e.Stopped(1)
	e.Resumed(2)
	c := pool.Get()
	n := copy(c.Data, udp("a small datagram, as DNS has them").frame())
	const portAt = 4 + 14 + 20 + 2
	fr := Frame{All: c.Data[:n], Head: 4, Chunk: c}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.Data[portAt], c.Data[portAt+1] = byte(i>>8)&3, byte(i)
		e.Secondary(3, fr)
		e.Primary(3, fr)
	}
	if out.n != b.N {
		b.Fatalf("%d of %d left", out.n, b.N)
	}
	b.ReportMetric(2*float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}
