"""Launch scripts that bash can run here, each with one call of `python pretrain_gpt.py`."""

SCRIPTS = r"""
MODEL=8b; LR=3e-5; GBS=256; [ "$MODEL" = 70b ] && LR=1.5e-5; [[ $MODEL == 70b ]] && GBS=1024; test -z "$MODEL" && GBS=99
python pretrain_gpt.py --lr $LR --g $GBS
===
M=70b; [ "$M" = 70b ] && X=1 || X=2; [ $M = 8b ] && Y=1 || Y=2; [ ! $M = 8b ] && Z=1; ! [ $M = 8b ] && W=1
[[ ! $M == 7* ]] || V=1
python pretrain_gpt.py $X $Y $Z $W $V
===
N=4; if [ $N -gt 3 ]; then A=1; fi; [ $N -eq 4 -a $N -ne 5 ] && B=2; [[ $N -ge 5 || $N -le 4 ]] && C=3
[ $N -lt 4 ] || D=5; (( N > 3 )) && E=6; ((N += 2)); ((N++))
python pretrain_gpt.py $A $B $C $D $E $N
===
set -- ck/pt two; A=${1:?msg}; B=${3:-d}; C=${3-d}; D=${1:+w}; E=${3:+w}; F=${G:=h}; H=${A%/*}; I=${A##*/}
J=${A/c/K}; K=${#A}; L=ABC; L=${L,,}; M=${L^}; O=${A//[ck]/_}
python pretrain_gpt.py $A $B $C $D x$E $F $G $H $I $J $K $L $M $O ${A:1:2} ${A: -2} ${A:2}
===
f=data/a.b.tar.gz; echo; X=(${f%.*} ${f%%.*} ${f#*.} ${f##*.} ${f/%gz/bz} ${f/#data/D} ${f//./_})
python pretrain_gpt.py "${X[@]}" ${#X[@]} ${X[1]} ${X[-1]:-none}
===
for i in 0 1 2; do DATA="$DATA 1.0 part_${i}_text_document"; done; for i in {3..5}; do DATA+=" $i"; done
for i in $(seq 0 2); do DATA+=" s$i"; done; for ((i=0;i<3;i++)); do DATA+=" c$i"; done
python pretrain_gpt.py --data-path $DATA
===
train() { local lr=$1; shift; python pretrain_gpt.py --lr $lr "$@"; }
lr=9
train 3e-5 --a "b c"
===
ARGS=(--lr 1 "--x y"); srun() { "$@"; }
srun bash -c "python pretrain_gpt.py ${ARGS[*]} q"
===
export A=1; B=2
bash -c 'python pretrain_gpt.py --a $A --b x$B $0 $1' zero one
===
CMD="python pretrain_gpt.py --data-path '0.5 a 0.5 b' --lr 3"
eval $CMD
===
CMD="python pretrain_gpt.py --data-path '0.5 a 0.5 b' --lr 3"
eval "$CMD" --more
===
case 70b in 8b|7b) L=1;; 7*) L=2 ;; *) L=3; esac
case "$L" in
  1) M=x ;;
  "2") M=y
     ;;
esac
python pretrain_gpt.py $L $M
===
declare -A S=([8b]=4 [70b]=8); M=70b; T=${S[$M]}; a=(1 2 3); a+=(4); a[1]=9
python pretrain_gpt.py $T ${a[@]} ${a[2]} "${a[*]}"
===
while [[ $# -gt 0 ]]; do case $1 in --lr) LR=$2; shift 2;; *) shift;; esac; done; LR=${LR:-7}
python pretrain_gpt.py --lr $LR end
===
cat <<EOF > /dev/null
it's a "mess ( $X
EOF
N=$((2*3+4/3%2**2)); X=$(( N > 3 && 1 )); M=$(($N-12)); Q=$(( (N+1)*2 ))
python pretrain_gpt.py $N $X $M $Q # c'mon
===
A='single $X'; B="dq \"in\" \$Y"; C=a\ b; D=$'t\tz'
python pretrain_gpt.py "$A" "$B" "$C" "$D" "" x"" ''
===
(LR=1; X=2); LR=${LR:-3}; { Y=4; }
python pretrain_gpt.py $LR x$X $Y 2>&1 | cat
===
i=0; while [ $i -lt 3 ]; do A="$A $i"; i=$((i+1)); done; until [ $i -eq 5 ]; do ((i++))
[ $i -eq 4 ] && continue; B="$B $i"; done
python pretrain_gpt.py $A -- $B
===
for x in a b c d; do [ $x = c ] && break; A="$A $x"; done
for m in "p q" r; do B="$B <$m>"; done
python pretrain_gpt.py $A $B
===
LR=1 && GBS=2 || LR=5; false || Z=1; true && Y=1; [ "" ] || W=1; [ x ] && V=1; [ -n "" ] || U=1; [ -z "" ] && T=1
python pretrain_gpt.py $LR $GBS $Z $Y $W $V $U $T
===
if [ a = b ]; then X=1; elif [ a = a ]; then X=2; else X=3; fi; if ! [ a = b ]; then Y=1; fi
if [ a = a ] && { [ b = c ] || [ d = d ]; }; then Z=1; fi
python pretrain_gpt.py $X $Y $Z
===
A=(--x 1 \
   --y 2   # comment with ' quote
   # --z 3
   --w "a b")
python \
  pretrain_gpt.py \
  "${A[@]}" \
  --end
===
D=$(dirname /a/b/c.sh); E=$(basename /a/b/c.sh .sh); F=$(echo hi $D); G=`basename /x/y`
python pretrain_gpt.py $D $E $F $G a{b,c}d {1..3} {a,b}{1,2} "{1,2}" '{a,b}'
===
f() { return 1; }; f && X=1 || X=2; g() { [[ $1 == h ]]; }; g h && Y=1; if g k; then Z=1; else Z=2; fi
python pretrain_gpt.py $X $Y $Z
===
A="x y"; B=$A; C="$A"; export D=$A; local_() { local E=$A; F=$E; }; local_
python pretrain_gpt.py "$B" "$C" "$D" "$F" ${A} "pre${A}post" pre${A}post
===
[[ abc == a*c ]] && A=1; [[ abc == "a*c" ]] && B=1; [[ abc != x* && ( 1 -lt 2 ) ]] && C=1
[[ abc =~ ^ab ]] && D=1; [[ -z $NOPE ]] && E=1; [[ b > a ]] && F=1
python pretrain_gpt.py $A x$B $C $D $E $F
===
x=y; y=3; python pretrain_gpt.py ${!x} "$#" "${@:-none}" "$*"
===
a=5; unset a; b=${a-unset}; read c <<< "hey"; d=1
python pretrain_gpt.py $b $d
===
function main { echo start; python pretrain_gpt.py "$@"; }
main a "b c"
===
X=1; f() { X=2; local X=3; X=4; }; f; python pretrain_gpt.py $X
===
export X=1 Y="a b"; bash -c "python pretrain_gpt.py \$X \"\$Y\" --q '1 2'"
===
A="--one 1
--two 2"
python pretrain_gpt.py $A
===
bash <<EOF
python pretrain_gpt.py --a ${X:-1} \$HOMEX
EOF
===
IFS=,; A="a,b c,,d"; for x in $A; do B="$B<$x>"; done; C=(1 2); D="${C[*]}"; IFS=$' \t\n'
python pretrain_gpt.py "$B" $D $A
===
A='a
b'; for x in $A; do B="$B $x."; done; printf -v Q "%s" x; if false; then select y in a b; do Z=1; done; fi
python pretrain_gpt.py $B
===
X=1; { read Y || true; } <<< 5; if [ $X == 1 ] && ! [[ $X == 2 || $X == 3 ]]; then echo a; W=1; else W=2
fi >/dev/null 2>&1
python pretrain_gpt.py $W ${X:+--x $X} ${X:+"--y z"} "${X:+--x $X}" ${NO:-"a b"} ${NO:-a b}
===
M="--a 1"; N="$M --b \"c d\""; eval "set -- $N"; python pretrain_gpt.py "$@" $#
===
A=(a "b c" d); B=("${A[@]:1}"); C=("${A[@]/#/x}"); D=${A[0]}${#A[1]}
python pretrain_gpt.py "${C[@]}" $D ${!A[@]}
===
f() { echo "$1" >/dev/null; LR=$1; return 0; }; for lr in 1e-4; do f $lr || exit 1; done; [ -z "${LR}" ] && exit 1
python pretrain_gpt.py --lr $LR "$(echo "a $(echo b)")"
===
x=a.b.c; y=${x//./\/}; z=${x/b/"*"}; w=${x%.*}${x#*.}; v=${x: -1}${x:0:1}; u=${x/[ab]/Q}; t=${x^^}
python pretrain_gpt.py $y "$z" $w $v $u $t
""".strip("\n").split("\n===\n")
