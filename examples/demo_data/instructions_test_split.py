"""General instructions with good short answers, by hand: the test split (format: see instruction.read_responses)."""

TEXT = """
Q: Explain in two sentences how a rainbow forms.
A: A rainbow forms when sunlight enters raindrops, bends, and is reflected inside them. Each color bends by a slightly
different amount, so the light spreads into bands.

Q: List three ways to save electricity at home.
A: 1. Switch off lights when you leave a room.
|2. Use LED bulbs.
|3. Unplug chargers and devices that you are not using.

Q: Rewrite the sentence in the future tense.
I: We eat lunch in the garden.
A: In the future tense, the sentence is: "We will eat lunch in the garden."

Q: Summarize the message in one sentence.
I: The elevator in building B is out of order. A technician will come tomorrow morning. Please use the stairs or the
elevator in building A.
A: The elevator in building B is broken until a technician comes tomorrow, so please use the stairs or building A.

Q: Write a short e-mail asking a teacher for more time for an assignment.
A: Dear Ms. Green,
|I was ill this week and could not finish the assignment. May I hand it in on Monday?
|Thank you for your understanding,
|Tom

Q: Decide whether the comment is positive, negative, or neutral.
I: I love this phone, the camera is amazing!
A: The comment is positive, because the writer loves the phone and praises its camera.

Q: Extract all names of people from the sentence.
I: Yesterday Laura met Peter and his sister Julia in Vienna.
A: The people named in the sentence are Laura, Peter, and Julia.

Q: Convert 2.5 hours to minutes.
A: 2.5 hours are 150 minutes, since each hour has 60 minutes.

Q: How can I become better at public speaking?
A: Practice your talk aloud several times, start with small groups, and focus on one clear message. Breathe slowly and
look at your audience.

Q: Write a Python function that returns the square of a number.
A: Here is a short function: `def square(x): return x * x`. For example, `square(4)` returns 16.

Q: What is the difference between a planet and a star?
A: A star makes its own light through nuclear fusion. A planet orbits a star and only reflects its light.

Q: Give me an antonym for each word.
I: early, noisy, generous
A: Early: late
|Noisy: quiet
|Generous: stingy

Q: Fix the spelling mistakes.
I: I recieved your mesage yestarday.
A: With correct spelling, the sentence is: "I received your message yesterday."

Q: Suggest a name for a small bakery.
A: "The Golden Crust" would be a warm and memorable name for a small bakery.

Q: Translate the sentence into French.
I: I would like a cup of coffee, please.
A: In French, you would say: "Je voudrais une tasse de café, s'il vous plaît."

Q: Describe a busy market in two sentences.
A: Voices and laughter fill the narrow aisles while sellers call out their prices. The air smells of fruit and spices.

Q: What do I need to grow tomatoes?
A: You need a sunny place, rich soil, regular water, and a stake to support the plants. Plant them after the frost.

Q: Who was Marie Curie?
A: Marie Curie was a physicist and chemist who studied radioactivity. She discovered radium and won two Nobel Prizes.

Q: Explain what a simile is and give an example.
A: A simile compares two things with the words "like" or "as". For example, "she is as brave as a lion".

Q: Make this sentence more formal.
I: Hey, can you fix this thing soon?
A: Could you please resolve this issue at your earliest convenience?

Q: Sort the words alphabetically.
I: pear, apple, mango, cherry
A: In alphabetical order, the words are apple, cherry, mango, and pear.

Q: Name four types of transportation.
A: Four types of transportation are the car, the train, the ship, and the airplane.

Q: Write a two-line rhyme about the moon.
A: The moon climbs up above the hill,
|and all the world is soft and still.

Q: How do I make a cup of tea?
A: Boil fresh water, pour it over a tea bag in a cup, and let it steep for three to five minutes. Remove the bag and
add milk or sugar if you like.

Q: What is gravity?
A: Gravity is the force that pulls objects toward each other. On Earth it pulls everything toward the ground and gives
it weight.

Q: Give one argument for and one against school uniforms.
A: For: uniforms reduce pressure about clothes and make students feel equal.
|Against: they limit the freedom to express oneself.

Q: Find the verbs in the sentence.
I: The boy jumped over the puddle and laughed.
A: The verbs are "jumped" and "laughed".

Q: Write a short message to a neighbor about loud music.
A: Hello, could you please turn the music down after ten in the evening? I have to get up early for work. Many thanks!

Q: What is one quarter of 200?
A: One quarter of 200 is 50, because 200 divided by 4 equals 50.

Q: Turn the question into a statement.
I: Is the museum free on Sundays?
A: As a statement, the question becomes: "The museum is free on Sundays."

Q: Why do leaves change color in autumn?
A: In autumn, trees stop making chlorophyll, the green pigment. As it disappears, the yellow and orange pigments in
the leaves become visible.

Q: Recommend a relaxing activity for the weekend.
A: Take a long walk in a park or forest and leave your phone at home. It clears your mind and keeps you fit.

Q: Combine the sentences with "although".
I: She was tired. She finished her homework.
A: The combined sentence is: "Although she was tired, she finished her homework."

Q: What does the saying "the early bird catches the worm" mean?
A: It means that people who start early have a better chance of success than those who wait.

Q: Create a slogan for a campaign against littering.
A: Here is a slogan for the campaign: "Keep it clean: the bin is never far away."

Q: Is this a fact or an opinion?
I: Water boils at 100 degrees Celsius at sea level.
A: It is a fact, because it can be measured and verified.

Q: How can I learn new vocabulary in a foreign language?
A: Learn a few words each day, use flashcards, and write your own sentences with them. Review them often, and read or
listen to the language.

Q: Give the past tense of each verb.
I: go, bring, swim
A: The past tense forms are went, brought, and swam.

Q: Explain the word "recycling" to a child.
A: Recycling means turning old things into new ones. Your empty bottle can become a toy or another bottle.

Q: Write a polite complaint about a late delivery.
A: Dear Sir or Madam, my order was due last Friday but has not arrived yet. Could you please tell me when I can expect
it? Kind regards, J. Miller

Q: What are the five senses?
A: The five senses are sight, hearing, smell, taste, and touch.

Q: Give two tips for saving money.
A: First, write down what you spend so that you see where your money goes. Second, set aside a fixed amount as soon as
you are paid.

Q: Change the sentence from passive to active voice.
I: The window was broken by the storm.
A: In the active voice, the sentence is: "The storm broke the window."

Q: What causes thunder?
A: Lightning heats the air around it so quickly that the air expands with great force. That expansion is the thunder.

Q: Write a shell command that lists all files, including hidden ones.
A: Use the command `ls -a`. The option `-a` stands for "all" and includes hidden files.

Q: Describe the smell of fresh bread.
A: Fresh bread smells warm, rich, and slightly sweet, with a toasty note from the crust.

Q: Remove all the numbers from the text.
I: Room 12 is on floor 3.
A: Without the numbers, the text is: "Room is on floor."

Q: Why is sleep important?
A: Sleep gives the body time to repair itself and helps the brain store memories. Without enough of it, we become
tired, moody, and less focused.

Q: Complete the analogy: hand is to glove as foot is to what?
A: Hand is to glove as foot is to sock, because a sock covers the foot and keeps it warm.

Q: Give a definition of a budget.
A: A budget is a plan that shows how much money you expect to receive and how you will spend it over a certain period.

Q: Write a short get-well message.
A: Dear Paul, I was sorry to hear that you are ill. Rest well, and I hope you feel much better very soon!

Q: What is the main point of the paragraph?
I: Many cities are planting more trees. Trees give shade, clean the air, and make streets cooler in summer.
A: The main point is that cities plant trees because they cool and clean the urban environment.

Q: Name the longest river in South America and one fact about it.
A: The Amazon is the longest river in South America. It carries more water than any other river in the world.

Q: How should I treat a small burn?
A: Cool the burn under running water for at least ten minutes and cover it with a clean cloth. Do not put ice on it.

Q: Suggest a vegetarian dinner.
A: Try a vegetable curry with chickpeas and rice. It is cheap, filling, and ready in about half an hour.

Q: Make the sentence shorter.
I: At this point in time we are not able to give you an answer to your question.
A: A shorter version is: "We cannot answer your question now."

Q: What is a computer virus?
A: A computer virus is a program that copies itself and spreads to other computers, often damaging files.

Q: Write one sentence about courage.
A: Courage is not the absence of fear but the decision to act in spite of it.

Q: Put the steps in the right order.
I: put on shoes, tie the laces, put on socks
A: 1. Put on socks
|2. Put on shoes
|3. Tie the laces

Q: If all cats are animals and Tom is a cat, what can we conclude?
A: Since all cats are animals and Tom is a cat, we can conclude that Tom is an animal.

Q: How many continents are there, and what are they called?
A: There are seven continents: Africa, Antarctica, Asia, Australia, Europe, North America, and South America.

Q: Write a product description for a coffee mug.
A: Enjoy your morning coffee in this sturdy ceramic mug. Its wide handle is easy to hold, and it is safe for the
dishwasher and the microwave.

Q: Give feedback on this sentence from an essay.
I: Dogs are good because they are good.
A: The sentence repeats itself. Give a reason instead, for example: "Dogs are good companions because they are loyal."

Q: What is the difference between "its" and "it's"?
A: "Its" shows possession, as in "the cat licked its paw". "It's" is short for "it is" or "it has".

Q: Change the text to third person.
I: I live in Rome and I teach music.
A: In the third person, the text is: "She lives in Rome and she teaches music."

Q: Tell me a short joke.
A: Why did the bicycle fall over? Because it was two-tired!

Q: How do vaccines work?
A: A vaccine shows the immune system a harmless part of a germ, so that the body learns to fight the real one.

Q: Categorize the items as fruit or vegetable.
I: carrot, banana, spinach
A: Carrot: vegetable
|Banana: fruit
|Spinach: vegetable

Q: Calculate the area of a rectangle that is 6 meters long and 4 meters wide.
A: The area is 24 square meters, because 6 times 4 is 24.

Q: Write an out-of-office reply.
A: Thank you for your message. I am out of the office until Monday, 8 June, and will reply when I return. In urgent
cases, please contact my colleague Lisa.

Q: What should you do if you get lost in a city?
A: Stay calm, look for street signs, and check a map. If that does not help, ask a shopkeeper for directions.

Q: What is a balanced diet?
A: A balanced diet contains fruit, vegetables, whole grains, protein, and healthy fats in the right amounts.

Q: Write the first sentence of a mystery story.
A: When the old clock struck thirteen, Clara knew that someone else was in the house.

Q: Compare cats and dogs as pets in two sentences.
A: Dogs need more time, walks, and training, but they are very loyal and playful. Cats are more independent and easier
to keep in a small apartment.

Q: Which word does not belong in the list?
I: chair, table, sofa, cloud
A: "Cloud" does not belong, because the other words are pieces of furniture.

Q: How do I remove a coffee stain from a shirt?
A: Rinse the stain with cold water, rub in a little dish soap, and wait a few minutes. Then wash the shirt as usual.

Q: State the law of supply and demand in simple words.
A: When many people want something and there is little of it, the price rises. When there is plenty and few want it,
it falls.

Q: Write a JavaScript line that shows the text "Hello" in the console.
A: You can write `console.log("Hello");`. The text then appears in the console of the browser.

Q: Why do some animals hibernate?
A: Some animals hibernate because food is scarce in winter. By sleeping and slowing their bodies, they save energy.

Q: Give three words that rhyme with "light".
A: Three words that rhyme with "light" are night, bright, and kite.

Q: Write a short review of a hotel that you liked.
A: The hotel was clean, quiet, and close to the station. The staff were friendly, and the breakfast was excellent. I
would gladly stay again.

Q: What is the boiling point of water in Fahrenheit?
A: Water boils at 212 degrees Fahrenheit at sea level.

Q: Replace the underlined word with a better one: The movie was _nice_.
A: A better choice would be "delightful": The movie was delightful.

Q: Explain what a loan is.
A: A loan is money that you borrow and must pay back later, usually with an additional amount called interest.

Q: How can parents encourage children to read?
A: Read together every day, let children choose their own books, and keep books within easy reach. Children also copy
parents who read.

Q: Answer the question using the text.
I: Text: The ferry leaves at 8:15 and arrives at 9:00. Question: How long is the trip?
A: The trip takes 45 minutes, because the ferry leaves at 8:15 and arrives at 9:00.

Q: Write a motivational sentence for a runner.
A: Every step you take brings you closer to the finish line, so keep going!

Q: What is the purpose of a résumé?
A: A résumé gives employers a brief overview of your education, experience, and skills so that they can decide whether
to invite you to an interview.

Q: Name two inventions that changed communication.
A: The printing press made books cheap and common, and the telephone let people talk over long distances.

Q: Identify the tense of the sentence.
I: They have finished their work.
A: The sentence is in the present perfect tense, which is formed with "have" and the past participle.

Q: What are the three states of matter?
A: The three common states of matter are solid, liquid, and gas. Ice, water, and steam are examples of each.

Q: Suggest a question to ask at the end of an interview.
A: You could ask, "What would success look like in the first six months of this role?"

Q: Write a caption for a photo of children playing in snow.
A: Cold hands, warm hearts, and the best snow day ever!

Q: Why should we protect forests?
A: Forests store carbon, give a home to countless species, and protect soil and water. When they are lost, both nature
and people suffer.

Q: Express the time 15:30 in the 12-hour format.
A: In the 12-hour format, 15:30 is written as 3:30 p.m.

Q: What is an adverb?
A: An adverb is a word that describes a verb, an adjective, or another adverb, such as "quickly" or "very".

Q: Give advice to someone who feels nervous before an exam.
A: Sleep well the night before, eat a light breakfast, and take a few slow breaths before you begin. Start with the
questions you know.

Q: Paraphrase the sentence.
I: The results of the study surprised the scientists.
A: In other words, the scientists did not expect what the study showed.

Q: Write a regular expression that matches one or more digits.
A: The regular expression `[0-9]+` matches one or more digits. The plus sign means "one or more".

Q: What is the role of a judge in a court?
A: A judge makes sure that the trial is fair, explains the law, and decides on the outcome of the case.

Q: Plan a simple morning routine with three steps.
A: 1. Drink a glass of water and stretch.
|2. Eat a healthy breakfast.
|3. Write down your most important task.

Q: How does a refrigerator keep food cold?
A: A fluid inside the refrigerator absorbs heat from the interior as it evaporates. A compressor then pumps it
outside, where it gives off that heat.

Q: Which of these animals can fly?
I: eagle, dog, bat, horse
A: The eagle and the bat can fly, while the dog and the horse cannot.

Q: Give an example of irony.
A: A fire station that burns down is an example of irony, because it is the last place where you would expect it.

Q: Write a short apology to a friend for forgetting to call.
A: Hi Nina, I am sorry that I forgot to call you yesterday. I had a hectic day, but that is no excuse. May I call now?

Q: Estimate how long it takes to walk 5 kilometers.
A: At a normal pace of about 5 kilometers per hour, it takes around one hour.

Q: Why is honesty important in a friendship?
A: Honesty builds trust. When friends tell each other the truth, even when it is hard, they can rely on each other.

Q: What is the capital of Japan, and what is it known for?
A: The capital of Japan is Tokyo. It is known for its busy streets, modern technology, temples, and excellent food.

Q: Rewrite the sentence without the word "very".
I: The soup was very hot.
A: Without the word "very", the sentence could be: "The soup was scalding."

Q: Translate the sentence into German.
I: The book is on the table.
A: In German, the sentence is: "Das Buch liegt auf dem Tisch."
"""
