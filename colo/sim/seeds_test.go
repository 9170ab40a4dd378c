package sim

import "testing"

// TestSeedsOfBefore plays schedules again that have found something. They mean what they meant then only as long as the generator isn't changed.
func TestSeedsOfBefore(t *testing.T) {
	for _, seed := range []uint64{
		17225, 28073,
		1882534458690603, 1882534458693833, 1882534458694968, 1882534458712815, 1882534458713133, 1882534458722625,
		1882534458729436, 1882534458746731, 1882534458753543, 1882534458754289, 1882534458756494, 1882534458766781,
		Unarbitrated + 3, Unarbitrated + 21, Unarbitrated + 52, Unarbitrated + 60, Unarbitrated + 108, Unarbitrated + 203,
		1882534458767181, 1882534458771116, 1882534458782573, 1882534458783344, 1882534458785889, 1882534458786502, 1882584199991224, 1882584199993383, 1882585069259379, 2305843009213706623,
	} {
		if r := Run(t, Generate(seed), false); r.Violation != nil {
			printStory(t, Generate(seed))
		}
	}
}
