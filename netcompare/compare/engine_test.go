package compare

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"
)

// table is an engine with the tests' hands on all its ends.
type table struct {
	t    testing.TB
	e    *Engine
	pool *Pool
	now  time.Duration
	out  []string // what left, by its body or flags
	why  []Reason
}

func (x *table) Release(_ uint8, frame []byte, _ *Chunk) {
	var p packet
	p.parse(0, frame[4:])
	name := string(p.body)
	if p.kind == kindTCP {
		for i, f := range "FSR.A" {
			if p.flags&(1<<i) != 0 && f != '.' {
				name += "+" + string(f)
			}
		}
	}
	if p.kind == kindFree {
		name = "free"
	}
	x.out = append(x.out, name)
}

func (x *table) Checkpoint(why Reason) { x.why = append(x.why, why) }

func newTable(t testing.TB, cfg Config) *table {
	x := &table{t: t, pool: new(Pool), now: time.Second}
	x.e = New(cfg, x, x.pool)
	return x
}

func begun(t testing.TB, cfg Config) *table {
	x := newTable(t, cfg)
	x.checkpoint()
	return x
}

func (x *table) checkpoint() {
	x.e.Stopped(int64(x.now))
	x.now += time.Millisecond
	x.e.Resumed(int64(x.now))
}

func (x *table) send(to func(int64, Frame), s seg) {
	f := s.put(x.pool)
	to(int64(x.now), f)
	f.Chunk.Drop()
}

func (x *table) pri(s seg) { x.send(x.e.Primary, s) }
func (x *table) sec(s seg) { x.send(x.e.Secondary, s) }

func (x *table) pass(d time.Duration) {
	x.now += d
	x.e.Tick(int64(x.now))
}

// left checks what has left since the last call.
func (x *table) left(want ...string) {
	x.t.Helper()
	if !slices.Equal(x.out, want) {
		x.t.Errorf("left %q, want %q", x.out, want)
	}
	x.out = nil
}

func (x *table) asked(want ...Reason) {
	x.t.Helper()
	if !slices.Equal(x.why, want) {
		x.t.Errorf("asked for a checkpoint: %v, want %v", x.why, want)
	}
	x.why = nil
}

func tcp4(seq, ack uint32, flags uint8, body string) seg {
	return seg{src: ap("10.0.0.1:80"), dst: ap("10.0.0.2:4000"), proto: protoTCP, seq: seq, ack: ack, flags: flags, body: []byte(body)}
}

func udp(body string) seg {
	return seg{src: ap("10.0.0.1:53"), dst: ap("10.0.0.2:4000"), proto: protoUDP, body: []byte(body)}
}

// opened has a connection on which both copies have answered the client's SYN.
func opened(t testing.TB) *table {
	x := begun(t, Config{Rest: -1})
	x.pri(tcp4(1000, 1, flagSYN|flagACK, ""))
	x.left()
	x.sec(tcp4(7777, 1, flagSYN|flagACK, "")) // the rewriter takes it as it is
	x.left("+S+A")
	return x
}

func TestBlindUntilCheckpoint(t *testing.T) {
	x := newTable(t, Config{})
	x.pri(udp("a"))
	x.sec(udp("a"))
	x.pri(seg{ether: 0x806})
	x.pri(tcp4(1, 1, flagACK, "b"))
	x.pass(time.Minute)
	x.left()
	x.asked()
	x.checkpoint()
	x.left("b+A", "free", "a")
}

func TestStreams(t *testing.T) {
	x := opened(t)
	x.pri(tcp4(1001, 51, flagACK, "hello, "))
	x.pri(tcp4(1008, 51, flagACK|flagFIN, "world"))
	x.left()
	x.sec(tcp4(1001, 51, flagACK, "hello"))
	x.left()
	x.sec(tcp4(1009, 51, flagACK|flagFIN, "orld"))
	x.left()
	x.sec(tcp4(1003, 51, flagACK, "llo, wo"))
	x.left("hello, +A", "world+F+A")
	x.pri(tcp4(1001, 51, flagACK, "hello, world")) // again
	x.left("hello, world+A")
	x.asked()
}

func TestAckWaits(t *testing.T) {
	x := opened(t)
	x.pri(tcp4(1001, 51, flagACK, ""))
	x.left()
	x.sec(tcp4(1001, 50, flagACK, ""))
	x.left()
	x.pass(59 * time.Millisecond)
	x.asked()
	x.sec(tcp4(987654321, 51, flagACK, "")) // the rewriter has forgotten the connection: its ACK counts all the same
	x.left("+A")
	x.pri(tcp4(1001, 60, flagACK, ""))
	x.pass(60 * time.Millisecond)
	x.left()
	x.asked(Late)
	x.checkpoint()
	x.left("+A")
}

func TestDifference(t *testing.T) {
	x := opened(t)
	x.pri(tcp4(1001, 1, flagACK, "time is 12:01"))
	x.sec(tcp4(1001, 1, flagACK, "time is 12:02"))
	x.left()
	x.asked(Differ)
	x.pri(tcp4(1014, 1, flagACK, "!"))
	x.pass(50 * time.Millisecond) // it was asked already
	x.asked()
	x.pass(time.Second)
	x.asked(Differ) // it did not come
	x.checkpoint()
	x.left("time is 12:01+A", "!+A")
	x.sec(tcp4(1014, 1, flagACK, "!")) // of the past
	x.pri(tcp4(1015, 1, flagACK, "on"))
	x.sec(tcp4(1015, 1, flagACK, "on"))
	x.left("on+A")
	x.asked()
}

func TestEndsDiffer(t *testing.T) {
	x := opened(t)
	x.pri(tcp4(1001, 1, flagACK|flagFIN, "bye"))
	x.sec(tcp4(1001, 1, flagACK, "bye, and more"))
	x.left()
	x.asked(Differ)
	x = opened(t)
	x.sec(tcp4(1001, 1, flagACK|flagFIN, "bye"))
	x.pri(tcp4(1001, 1, flagACK, "bye, and more"))
	x.left()
	x.asked(Differ)
}

func TestReset(t *testing.T) {
	x := opened(t)
	x.pri(tcp4(1001, 0, flagRST, ""))
	x.left()
	x.sec(tcp4(5, 0, flagRST, ""))
	x.left("+R")
	x.asked()
	x = opened(t)
	x.sec(tcp4(1001, 0, flagRST, ""))
	x.pri(tcp4(1001, 1, flagACK, "well"))
	x.left()
	x.asked(Reset)
	x = opened(t)
	x.pri(tcp4(1001, 0, flagRST, ""))
	x.pass(20 * time.Millisecond)
	x.asked(Late)
}

// A checkpoint between SYN+ACK and the client's answer spoils the rewriter. The reset is the sign.
func TestCutHandshake(t *testing.T) {
	x := begun(t, Config{})
	x.pri(tcp4(1000, 1, flagSYN|flagACK, ""))
	x.checkpoint()
	x.left("+S+A")
	x.sec(tcp4(1, 0, flagRST, ""))
	x.pass(time.Millisecond)
	x.asked(Reset)
	x.checkpoint()
	x.pri(tcp4(1001, 5, flagACK, "hi"))
	x.sec(tcp4(1001, 5, flagACK, "hi"))
	x.left("hi+A")
}

func TestNumbersThatNobodyRewrites(t *testing.T) {
	for name, change := range map[string]func(*seg){
		"guest connects": func(s *seg) { s.flags = flagSYN },
		"IPv6":           func(s *seg) { s.src, s.dst = ap("[fd00::1]:80"), ap("[fd00::2]:4000") },
		"VLAN":           func(s *seg) { s.vlan = 5 },
	} {
		x := begun(t, Config{Rest: -1})
		s := tcp4(1000, 1, flagSYN|flagACK, "")
		change(&s)
		x.pri(s)
		x.left()
		if !slices.Equal(x.why, []Reason{Number}) {
			t.Errorf("%s: asked %v", name, x.why)
		}
		x.checkpoint()
		if len(x.out) != 1 {
			t.Errorf("%s: left %q", name, x.out)
		}
	}
}

// The same ports again.
func TestNextConnection(t *testing.T) {
	x := opened(t)
	x.pri(tcp4(1001, 1, flagACK, "old"))
	x.sec(tcp4(5000, 90001, flagSYN|flagACK, "")) // the secondary is ahead
	x.pri(tcp4(500000, 90001, flagSYN|flagACK, ""))
	x.left("+S+A")
	x.sec(tcp4(500001, 90002, flagACK, "new"))
	x.pri(tcp4(500001, 90002, flagACK, "new"))
	x.left("new+A")
	x.asked()
}

func TestDatagrams(t *testing.T) {
	x := begun(t, Config{Datagrams: 3})
	x.sec(udp("a"))
	x.pri(udp("a"))
	x.pri(udp("b"))
	x.sec(udp("b"))
	x.left("a", "b")
	x.pri(udp("a")) // once said, once left
	x.left()
	x.pass(20 * time.Millisecond)
	x.asked(Late)
	x.checkpoint()
	x.left("a")
	x.sec(udp("a")) // the answer to what was under way: neither kept nor a difference
	x.pri(udp("c"))
	x.sec(udp("d"))
	x.pass(10 * time.Millisecond)
	x.asked(Differ)
	x.checkpoint()
	x.left("c")
	for i := range 5 {
		x.sec(udp(fmt.Sprint(i)))
	}
	x.pri(udp("1")) // forgotten
	x.pri(udp("3"))
	x.left("3")
	x.asked()
}

func TestFragments(t *testing.T) {
	frag := func(at uint16, body string) seg {
		s := udp("")
		s.proto, s.frag, s.body = 47, at, []byte(body)
		return s
	}
	x := begun(t, Config{})
	x.pri(frag(0x2000, "same"))
	x.pri(frag(8, "same"))
	x.sec(frag(8, "same"))
	x.left("same")
	if x.e.Stats().Waiting != 1 {
		t.Errorf("%+v", x.e.Stats())
	}
}

func TestHold(t *testing.T) {
	x := opened(t)
	x.pri(tcp4(1001, 1, flagACK, "hi"))
	x.e.Stopped(int64(x.now))
	x.e.Hold()
	x.e.Resumed(int64(x.now))
	x.sec(tcp4(1001, 1, flagACK, "hi"))
	x.pri(seg{ether: 0x806})
	x.pass(time.Minute)
	x.left()
	x.asked()
	if s := x.e.Stats(); s.Waiting != 0 || x.pool.Used() != 0 || s.Mode != "held" {
		t.Errorf("%+v, %d bytes", s, x.pool.Used())
	}
}

// What comes between the stop and the resumption may be of after it.
func TestBetween(t *testing.T) {
	x := opened(t)
	x.e.Stopped(int64(x.now))
	x.pri(tcp4(1001, 1, flagACK, "hi"))
	x.e.Resumed(int64(x.now))
	x.left()
	x.sec(tcp4(1001, 1, flagACK, "hi"))
	x.left("hi+A")
	x.e.Stopped(int64(x.now))
	x.pri(tcp4(1003, 1, flagACK, "ho"))
	x.e.Continued(int64(x.now)) // no checkpoint
	x.left()
}

func TestRest(t *testing.T) {
	x := begun(t, Config{Rest: 4})
	x.e.Ask(int64(x.now)) // 1 ms was the last pause
	x.pass(3 * time.Millisecond)
	x.asked()
	if next := x.e.Tick(int64(x.now)); next != int64(x.now+time.Millisecond) {
		t.Errorf("wants to be called in %v", time.Duration(next)-x.now)
	}
	x.pass(time.Millisecond)
	x.asked(Asked)
}

func TestPass(t *testing.T) {
	x := begun(t, Config{Rules: []Rule{{Protocol: "udp", Guest: 53, Pass: true}}})
	x.pri(udp("now"))
	x.sec(udp("other"))
	x.left("now")
	x.asked()
}

func TestBounds(t *testing.T) {
	big := string(make([]byte, 1000))
	x := begun(t, Config{FlowBytes: 10000, Rest: -1})
	for i := range uint32(30) {
		x.sec(tcp4(1001+i*1000, 1, flagACK, big))
	}
	x.asked(Memory)
	if w := x.e.Stats().Waiting; w > 10 {
		t.Errorf("%d wait", w)
	}
	x.checkpoint()
	for range 30 {
		x.pri(udp(big))
	}
	x.asked(Memory)
	if s := x.e.Stats(); s.Waiting > 10 || s.Dropped < 20 {
		t.Errorf("%+v", s)
	}
	x.checkpoint()
	x = begun(t, Config{TotalBytes: 2 << 20, Rest: -1})
	for i := range 100 { // each in a chunk of its own
		s := udp("x")
		s.dst = ap(fmt.Sprintf("10.0.0.2:%d", 100+i))
		x.pri(s)
	}
	x.asked(Memory)
	if x.pool.Used() > 4<<20 {
		t.Errorf("%d bytes", x.pool.Used())
	}
	x.checkpoint()
	if x.pool.Used() != 0 {
		t.Errorf("%d bytes are left", x.pool.Used())
	}
	x = begun(t, Config{Flows: 10})
	for i := range 1000 {
		s := udp("x")
		s.dst = ap(fmt.Sprintf("10.0.0.2:%d", 100+i))
		x.sec(s)
	}
	if s := x.e.Stats(); s.Flows > 10 || s.Waiting > 10 {
		t.Errorf("%+v", s)
	}
}

// FuzzEngine feeds both copies' frames and checkpoints in any order: nothing may panic, leave that was not given, or remain.
func FuzzEngine(f *testing.F) {
	var b []byte
	for _, s := range []seg{tcp4(1, 1, flagSYN|flagACK, ""), tcp4(2, 1, flagACK, "data"), udp("x"), tcp4(6, 1, flagACK|flagFIN, "")} {
		fr := s.frame()[4:]
		for _, op := range []byte{0, 1} {
			b = append(append(binary.BigEndian.AppendUint16(append(b, op), uint16(len(fr))), fr...), 2)
		}
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		x := begun(t, Config{TotalBytes: 4 << 20, FlowBytes: 1 << 16, Flows: 8})
		given, c, used := 0, x.pool.Get(), 0
		for len(b) > 0 {
			op := b[0]
			b = b[1:]
			switch op % 5 {
			case 0, 1:
				if len(b) < 2 {
					b = nil
					continue
				}
				n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
				if used+4+n > len(c.Data) {
					c.Drop()
					c, used = x.pool.Get(), 0
				}
				fr := Frame{All: c.Data[used : used+4+n], Head: 4, Chunk: c}
				used += 4 + copy(fr.All[4:], b[2:])
				if op%5 == 0 {
					given++
					x.e.Primary(int64(x.now), fr)
				} else {
					x.e.Secondary(int64(x.now), fr)
				}
				b = b[2+n:]
			case 2:
				x.e.Stopped(int64(x.now))
			case 3:
				x.e.Resumed(int64(x.now))
			case 4:
				x.pass(time.Duration(op) * time.Millisecond)
			}
		}
		x.checkpoint()
		x.checkpoint()
		c.Drop()
		if s := x.e.Stats(); len(x.out) > given || int(s.Released+s.Dropped) != given || s.Waiting != 0 || x.pool.Used() != 0 || x.e.bytes != 0 {
			t.Errorf("%d given, %+v, %d bytes left", given, s, x.pool.Used())
		}
	})
}
